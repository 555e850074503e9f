"""Commands side by side: their order, their failures, their end."""

import fcntl
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from d2kd.experiments.jobs import Command, Job, Progress, run_jobs


def shell(tmp_path, name, script, needs=()):
    command = Command(["sh", "-c", script], os.environ, tmp_path / name)
    return Job(name, "any", lambda: command, lambda: "fine", lambda: Progress(0, 1), needs)


def test_jobs_run_side_by_side(tmp_path):
    # Each waits for the other: one after the other they would never end.
    scripts = [f"touch {tmp_path}/{a}; until [ -e {tmp_path}/{b} ]; do sleep .05; done" for a, b in ("xy", "yx")]
    jobs = [shell(tmp_path, f"job{i}", script) for i, script in enumerate(scripts)]
    stream = io.StringIO()
    assert run_jobs(jobs, [{}, {}], stream) == []
    assert stream.getvalue().count("done in") == 2


def test_jobs_wait_for_what_they_need(tmp_path):
    first = shell(tmp_path, "first", f"sleep .5; touch {tmp_path}/made")
    second = shell(tmp_path, "second", f"test -e {tmp_path}/made", needs=("first",))
    assert run_jobs([first, second], [{}, {}], io.StringIO()) == []
    with pytest.raises(ValueError, match="'second' stands twice, or before what it needs"):
        run_jobs([second, first], [{}, {}], io.StringIO())


def test_a_folder_is_written_by_one_process(tmp_path):
    job = shell(tmp_path, "job", "true")
    (tmp_path / "job").mkdir()
    stream = io.StringIO()
    with open(tmp_path / "job" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert run_jobs([job], [{}], stream) == ["job"]
    assert "another process is running in" in stream.getvalue()
    assert run_jobs([job], [{}], stream) == []


def test_each_running_command_has_an_environment_to_itself(tmp_path):
    script = f"""test "$OTHER" = kept; mkdir {tmp_path}/$PLACE; sleep .3; rmdir {tmp_path}/$PLACE"""
    jobs = [shell(tmp_path, f"job{i}", f"set -e; {script}") for i in range(5)]
    places = [{"PLACE": "a", "OTHER": "kept"}, {"PLACE": "b", "OTHER": "kept"}]
    stream = io.StringIO()
    assert run_jobs(jobs, places, stream) == [], stream.getvalue()


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream, lines", [(Terminal(), 2), (io.StringIO(), 3)])
def test_progress_does_not_flood(tmp_path, stream, lines):
    run_jobs([shell(tmp_path, "job", "sleep 2.6")], [{}], stream)
    # On a terminal the progress is overwritten by the next line; in a file it is a line of its own.
    assert stream.getvalue().count("0/1 done | job 0/1 | ETA ?") == 1  # the first after two seconds
    assert stream.getvalue().count("\n") == lines


def test_a_free_process_takes_the_first_job_that_can_start(tmp_path):
    jobs = [shell(tmp_path, "teacher", "true"), shell(tmp_path, "alone 0", "true")]
    jobs += [shell(tmp_path, "taught 0", "true", ("teacher",)), shell(tmp_path, "alone 1", "true")]
    stream = io.StringIO()
    assert run_jobs(jobs, [{}], stream) == []
    started = [line.split(":")[0] for line in stream.getvalue().splitlines() if "started" in line]
    assert started == ["teacher", "alone 0", "taught 0", "alone 1"]


def test_a_failed_job_says_why_and_stops_only_those_that_need_it(tmp_path):
    lines = "; ".join(f"echo line {i}" for i in range(20))
    jobs = [shell(tmp_path, "a", f"{lines}; exit 3"), shell(tmp_path, "b", "true", ("a",))]
    jobs += [shell(tmp_path, "c", "true", ("b",)), shell(tmp_path, "d", "true")]
    stream = io.StringIO()
    assert sorted(run_jobs(jobs, [{}, {}], stream)) == ["a", "b", "c"]
    said = stream.getvalue()
    assert "a: FAILED, exit code 3; the last lines of" in said and "    line 5\n" in said and "line 4\n" not in said
    assert "b: FAILED, not started, since it needs: a" in said and "c: FAILED, not started, since it needs: b" in said
    assert "d: done in 0:00:0" in said


def test_what_is_no_job_error_ends_all(tmp_path):
    def prepare():
        raise RuntimeError("a bug")

    jobs = [shell(tmp_path, "long", "sleep 60"), Job("broken", "any", prepare, str, lambda: Progress(0, 1))]
    start = time.monotonic()
    with pytest.raises(RuntimeError, match="a bug"):
        run_jobs(jobs, [{}, {}], io.StringIO())
    assert time.monotonic() - start < 30


INTERRUPTED = """
import os, sys
from pathlib import Path
from d2kd.experiments import jobs
jobs.STOP_SECONDS = 2
command = jobs.Command(["sh", "-c", sys.argv[2]], os.environ, Path(sys.argv[1]))
try:
    jobs.run_jobs([jobs.Job("job", "any", lambda: command, str, lambda: jobs.Progress(0, 1))], [{}])
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("deaf", ["", "trap '' TERM;"], ids=["a deaf child", "all deaf"])
def test_nothing_is_left_behind_however_often_it_is_interrupted(tmp_path, first, deaf):
    pids = tmp_path / "pids"
    script = f"{deaf} (trap '' TERM; sleep 300) & echo $$ $! > {pids}; wait; sleep 300"
    command = [sys.executable, "-W", "ignore", "-c", INTERRUPTED, str(tmp_path / "job"), script]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (pids.is_file() and len(pids.read_text().split()) == 2) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(first)
    if deaf:  # it takes two seconds to be killed
        for again in (signal.SIGINT, signal.SIGTERM):
            time.sleep(0.3)
            process.send_signal(again)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 130
    assert "FAILED" not in said  # it was stopped
    for pid in map(int, pids.read_text().split()):
        assert not is_running(pid)


def test_another_signal_kills_what_takes_long(tmp_path):
    pids = tmp_path / "pids"
    code = INTERRUPTED.replace("jobs.STOP_SECONDS = 2", "")
    command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "job"), f"trap '' TERM; echo $$ > {pids}; "]
    command[-1] += "sleep 300; sleep 300"
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True)
    while not (pids.is_file() and pids.read_text().strip()):
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    time.sleep(3.5)
    assert process.poll() is None  # the command has its time
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 130 and "may write its checkpoint first" in said
    assert not is_running(int(pids.read_text()))


def is_running(pid):
    """Whether the process lives; one that nobody has waited for does not."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.is_file() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"
