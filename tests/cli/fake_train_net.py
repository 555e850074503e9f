"""Stands in for `d2kd train`: writes what that writes, in no time. Told what to do by $FAKE_PLAN (JSON)."""

import json
import os
import sys
import time
from pathlib import Path

argv = sys.argv[1:]
options = dict(arg.split("=", 1) for arg in argv if "=" in arg)
run = Path(argv[argv.index("--config-file") + 1]).stem
run += " " + (argv[argv.index("--method") + 1] if "--method" in argv else "config")
folder = Path(options["train.output_dir"].strip("'"))
max_iter = int(options.get("train.max_iter", 16))
seed = int(options.get("train.seed", 0))
plan = json.loads(Path(os.environ["FAKE_PLAN"]).read_text())
mine = {**plan.get(run, {}), **plan.get(f"{run} {seed}", {})}
metrics = folder / "metrics.json"
# As `d2kd train`: --resume goes on after the last checkpoint.
tag = folder / "last_checkpoint"
last = tag.read_text() if "--resume" in argv and tag.is_file() else "model_-000001.pth"
start = max_iter if last == "model_final.pth" else int(last[6:13]) + 1
call = {"run": f"{run} {seed}", "start": start, "options": options, "threads": os.environ.get("OMP_NUM_THREADS")}
with open(os.environ["FAKE_CALLS"], "a") as f:
    f.write(json.dumps({**call, "pid": os.getpid()}) + "\n")

folder.mkdir(parents=True, exist_ok=True)
if start == max_iter:
    sys.exit()
with open(metrics, "a") as f:
    for i in range(start, max_iter):
        cost = {"cost/cpu_seconds": mine.get("cpu", 1.0) * (i + 1), "cost/wall_seconds": 0.5 * (i + 1)}
        evaluated = {"bbox/AP": 50.0 * (i + 1) / max_iter} if (i + 1) % max(1, max_iter // 8) == 0 else {}
        f.write(json.dumps({"iteration": i, "total_loss": 1.0, **cost, **evaluated}) + "\n")
        f.flush()
        if (i + 1) % int(options.get("train.checkpointer.period", 3)) == 0:
            tag.write_text(f"model_{i:07d}.pth")
        if i == mine.get("fail_at"):
            print("boom: no such loss")
            sys.exit(3)
        if i == mine.get("hang_at"):
            time.sleep(600)
    ap = mine.get("ap", 30.0) + seed
    final = {"bbox/AP": ap, "bbox/AP50": ap + 20, "bbox/AP75": ap, "bbox/APs": ap, "bbox/APl": float("nan")}
    final = mine.get("metrics", final)
    f.write(json.dumps({"iteration": max_iter, **final, **cost}) + "\n")
(folder / "model_final.pth").write_bytes(f"{run} {seed} {max_iter}".encode())
tag.write_text("model_final.pth")
