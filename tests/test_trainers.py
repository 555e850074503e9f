"""A distilled model in the loops of Detectron2's training scripts, and with gradients of several steps."""

import json

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer, PeriodicCheckpointer
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig, instantiate
from detectron2.engine import SimpleTrainer, default_writers, hooks
from detectron2.engine.defaults import create_ddp_model
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler, build_optimizer
from detectron2.solver.build import get_default_optimizer_params
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from omegaconf import OmegaConf

from d2kd.config import distill, get_config, get_detectron2_config
from tests.helpers import make_batch, run_step
from tests.nodes import checkpoint_of, fcos, pair, retinanet
from tests.yacs_projects import assert_same_tensors, assert_same_weights, plain, wrapped, write_teacher


def saved(path):
    return torch.load(path, weights_only=False)["model"]


# ---- tools/lazyconfig_train_net.py -----------------------------------------------------------------------------------


def batches():
    """The same two images again and again, so that a run that resumes sees what one in one go does."""
    return [make_batch()] * 10


class Count(DatasetEvaluator):
    def reset(self):
        self.images = 0

    def process(self, inputs, outputs):
        self.images += sum("instances" in output for output in outputs)

    def evaluate(self):
        return {"images": {"number": self.images}}


def lazy_config(folder, build, losses, max_iter):
    cfg = get_detectron2_config("common/train.py")
    teacher = folder / "teacher.yaml"
    LazyConfig.save(OmegaConf.create(dict(model=build()), flags={"allow_objects": True}), str(teacher))
    weights = folder / "teacher.pth"
    if not weights.exists():
        checkpoint_of(build(), folder)
    cfg.model = distill(build(), teacher=str(teacher), teacher_checkpoint=str(weights), method="crosskd")
    cfg.model.teacher.model.trust = ["tests"]
    if losses == "baseline":
        cfg.model.losses = None
    cfg.optimizer = L(torch.optim.SGD)(
        params=L(get_default_optimizer_params)(weight_decay_norm=0.0), lr=0.01, momentum=0.9
    )
    cfg.lr_multiplier = get_config("common/optim.py").steps
    cfg.dataloader = dict(train=L(batches)(), test=L(batches)(), evaluator=L(Count)())
    cfg.train.update(output_dir=str(folder), max_iter=max_iter, device="cpu", eval_period=2, log_period=1)
    cfg.train.checkpointer.period = 2
    return cfg


def lazy_test(cfg, model):
    return inference_on_dataset(model, instantiate(cfg.dataloader.test), instantiate(cfg.dataloader.evaluator))


def lazy_train(cfg, resume=False):
    model = instantiate(cfg.model)
    model.to(cfg.train.device)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    loader = instantiate(cfg.dataloader.train)
    model = create_ddp_model(model, **cfg.train.ddp)
    trainer = SimpleTrainer(model, loader, optimizer)
    checkpointer = DetectionCheckpointer(model, cfg.train.output_dir, trainer=trainer)
    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
            hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer),
            hooks.EvalHook(cfg.train.eval_period, lambda: lazy_test(cfg, model)),
            hooks.PeriodicWriter(
                default_writers(cfg.train.output_dir, cfg.train.max_iter), period=cfg.train.log_period
            ),
        ]
    )
    checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=resume)
    start = trainer.iter + 1 if resume and checkpointer.has_checkpoint() else 0
    trainer.train(start, cfg.train.max_iter)
    return model


@pytest.mark.parametrize("losses", ["distilled", "baseline"])
@pytest.mark.parametrize("build", [retinanet, fcos])
def test_the_lazyconfig_script(tmp_path, build, losses):
    folders = [tmp_path / "one_go", tmp_path / "resumed"]
    for folder in folders:
        folder.mkdir()
    for folder, max_iter, resume in [(folders[0], 4, False), (folders[1], 2, False), (folders[1], 4, True)]:
        torch.manual_seed(5 + resume)  # a run that resumes must not depend on what it starts from
        lazy_train(lazy_config(folder, build, losses, max_iter), resume)
    assert_same_tensors(*(saved(folder / "model_final.pth") for folder in folders))

    terms = {"loss_kd_crosskd_cls", "loss_kd_crosskd_loc"} if losses == "distilled" else set()
    rows = [json.loads(line) for line in (folders[1] / "metrics.json").read_text().splitlines()]
    assert {row["images/number"] for row in rows if "images/number" in row} == {20}
    steps = [row for row in rows if "total_loss" in row]
    assert [row["iteration"] for row in steps] == [0, 1, 2, 3]
    for row in steps:
        assert {key for key in row if key.startswith("loss_kd_")} == terms
        assert all(row[key] > 0 for key in terms)

    # --eval-only of a plain config and of the distilled one, whose teacher is gone.
    cfg = lazy_config(folders[0], build, losses, 4)
    (folders[0] / "teacher.yaml").unlink()
    (folders[0] / "teacher.pth").unlink()
    found = []
    for node in (cfg.model, build()):
        model = create_ddp_model(instantiate(node).eval())
        DetectionCheckpointer(model).load(str(folders[0] / "model_final.pth"))
        assert lazy_test(cfg, model) == {"images": {"number": 20}}
        found.append(model)
    assert_same_weights(*found)


# ---- tools/plain_train_net.py ----------------------------------------------------------------------------------------


def plain_train(cfg, max_iter, resume=False):
    model = build_model(cfg)
    model.train()
    optimizer = build_optimizer(cfg, model)
    scheduler = build_lr_scheduler(cfg, optimizer)
    checkpointer = DetectionCheckpointer(model, cfg.OUTPUT_DIR, optimizer=optimizer, scheduler=scheduler)
    start = checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume).get("iteration", -1) + 1
    periodic = PeriodicCheckpointer(checkpointer, 2, max_iter=max_iter)
    history = []
    with EventStorage(start) as storage:
        for data, iteration in zip(batches(), range(start, max_iter)):
            storage.iter = iteration
            loss_dict = model(data)
            losses = sum(loss_dict.values())
            assert torch.isfinite(losses).all()
            reduced = {name: value.item() for name, value in comm.reduce_dict(loss_dict).items()}
            storage.put_scalars(total_loss=sum(reduced.values()), **reduced)
            optimizer.zero_grad()
            losses.backward()
            optimizer.step()
            scheduler.step()
            history.append((iteration, reduced, storage.latest()["kd/gap_at_positives"]))
            periodic.step(iteration)
    return model, history


def test_the_plain_script(tmp_path):
    histories = {}
    for run, parts in {"one_go": [(4, False)], "resumed": [(2, False), (4, True)]}.items():
        cfg = wrapped(METHOD="bckd", **write_teacher(tmp_path))
        cfg.OUTPUT_DIR = str(tmp_path / run)
        (tmp_path / run).mkdir()
        for index, (max_iter, resume) in enumerate(parts):
            torch.manual_seed(5 + index)
            histories[run] = histories.get(run, []) + plain_train(cfg, max_iter, resume)[1]
    assert [iteration for iteration, *_ in histories["resumed"]] == [0, 1, 2, 3]
    assert histories["resumed"] == histories["one_go"]  # every loss of every step
    assert_same_tensors(*(saved(tmp_path / run / "model_final.pth") for run in histories))
    assert all(losses["loss_kd_bckd_cls"] > 0 for _, losses, _ in histories["one_go"])
    # Its evaluation: the plain config reads what the distilled one wrote.
    model = build_model(plain())
    DetectionCheckpointer(model).resume_or_load(str(tmp_path / "one_go/model_final.pth"))
    assert inference_on_dataset(model, batches(), Count()) == {"images": {"number": 20}}


# ---- gradient accumulation -------------------------------------------------------------------------------------------


def grads_of(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family, method", [("RetinaNet", "crosskd"), ("FCOS", "bckd"), ("GFL", "ftpd")])
@pytest.mark.parametrize("backward", ["each", "of the sum"])
def test_gradients_add_up_over_steps(family, method, backward):
    parts, model = pair(family, method), pair(family, method)
    separate = []
    for seed in (1, 2, 3):
        parts.zero_grad()
        sum(run_step(parts, make_batch(seed=seed)).values()).backward()
        separate.append(grads_of(parts))
    with EventStorage():
        losses = [sum(model(make_batch(seed=seed)).values()) for seed in (1, 2, 3)] if backward != "each" else []
        for seed in (1, 2, 3) if backward == "each" else ():
            sum(model(make_batch(seed=seed)).values()).backward()
    if losses:
        sum(losses).backward()
    found = grads_of(model)
    assert {name for name, grad in found.items() if grad.count_nonzero()} >= {"head.cls_score.weight"}
    for name, grad in found.items():
        expected = sum(grads[name] for grads in separate)
        torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item(), msg=name)
    assert all(p.grad is None for p in model.teacher.detector.parameters())
    assert torch.equal(model.distillation.loss_normalizer_0, parts.distillation.loss_normalizer_0)
