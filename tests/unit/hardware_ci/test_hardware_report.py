"""The support table, the plots and the workflow say what the matrix and the results say, and no more."""

from __future__ import annotations

import copy
import dataclasses
import shutil

import pytest
import yaml
from helpers_hardware import ROOT

from hardware_ci import matrix, places, plots, results, support, workflow
from portable_gla.testing import cases

README = f"# A title\n\n{support.BEGIN}\nold\n{support.END}\n\nThe rest.\n"


def result(row="h200", backend="triton", day="2026-12-01", outcome="passed", sha="a" * 40, **more):
    what = {
        "format": 1, "row": row, "backend": backend, "quick": False, "finished": f"{day} 10:00:00",
        "device": {"type": "cuda", "kind": row, "name": "NVIDIA H200"}, "commit": {"sha": sha, "changed": False},
        "steps": {"conformance": {"outcome": outcome, "checks": 9000, "failed": 0 if outcome == "passed" else 7,
                                  "cases": 386},
                  "sanitizer": {"outcome": "skipped"}}, **more}
    return results.Result(places.RESULTS / "none.yaml", copy.deepcopy(what))


def timed():
    entries = []
    for case in cases.select("hardware"):
        step = {"bytes": 10**9, "copy_fraction": 0.6,
                "times": {"triton": {"median": 1e-3, "ratio": 1.0}, "torch sdpa flash": {"median": 2e-3, "ratio": 2.0}}}
        kind = next(tag for tag in ("shape", "sweep", "decode") if tag in case.tags)
        passes = ("forward",) if kind == "decode" else matrix.PASSES
        entries.append({"case": case.name, "batch": case.batch, "tokens": case.tokens, "heads": case.heads,
                        "key_dim": case.key_dim, "value_dim": case.value_dim, "gate": case.gate, "dtype": "bfloat16",
                        "for": kind, "copy_gb_s": 4000.0, "passes": dict.fromkeys(passes, step)})
    return {"outcome": "passed", "shapes": entries}


def row(key):
    """A row of the matrix, without what the matrix says of emulation for all devices of its backend."""
    found = next(row for row in matrix.rows() if row.key == key)
    return found if key == "cpu-arm" else dataclasses.replace(found, emulated="")


def test_a_device_that_was_never_run_says_so(tmp_path):
    assert support.verified(row("h200"), [], tmp_path) == "nothing: not yet run"
    assert support.verified(row("cpu-arm"), [], tmp_path).endswith("not yet run on a chip")
    assert "qemu" in support.verified(row("cpu-arm"), [], tmp_path)
    text = support.table(matrix.rows(), [], tmp_path)
    assert "has not run on a GPU or an NPU yet" in text
    assert text.count("\n| ") == 1 + len(matrix.rows()) + len(matrix.others()) - 1


def test_what_the_matrix_says_of_a_backend_holds_for_its_rows(tmp_path):
    document = yaml.safe_load(places.MATRIX.read_text(encoding="utf-8"))
    document["emulated"] = {"triton": "its kernels, interpreted"}
    path = tmp_path / "matrix.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    texts = {row.key: support.verified(row, [], tmp_path) for row in matrix.rows(path)}
    assert texts["h200"] == texts["mi300"] == "its kernels, interpreted; not yet run on a chip"
    assert texts["v100"] == "nothing: not yet run" and "qemu" in texts["cpu-arm"]


def test_builds_without_a_device_are_no_more_than_that(tmp_path):
    (tmp_path / "triton.yaml").write_text(yaml.safe_dump({"sample": False, "rows": [
        {"target": "sm_90", "broken": ""}, {"target": "sm_90", "broken": "8 bytes of spills"}]}), encoding="utf-8")
    assert support.verified(row("h200"), [], tmp_path) == (
        "compiled for sm_90: 2 builds, 1 against a rule; not yet run on a chip")


def test_a_native_run_says_commit_date_and_device(tmp_path):
    found = [result(sha="b" * 40), result(day="2026-12-02", floors=[{"outcome": "held"}, {"outcome": "missed"}])]
    text = support.verified(row("h200"), found, tmp_path)
    assert text == ("the conformance suite, natively: 9,000 of 9,000 checks, 386 cases, commit aaaaaaa, 2026-12-02, "
                    "NVIDIA H200; 1 of 2 speed floors held")
    assert "not run on a GPU" not in support.table(matrix.rows(), found, tmp_path)


def test_changed_sources_quick_cases_and_a_choice_of_cases_are_told_apart(tmp_path):
    changed = result(quick=True, commit={"sha": "c" * 40, "changed": True})
    assert "386 quick cases, commit ccccccc with changes" in support.verified(row("h200"), [changed], tmp_path)
    some = result()
    some.steps["conformance"]["only"] = "tokens-*"
    assert support.verified(row("h200"), [some], tmp_path) == "nothing: not yet run"
    other = result(backend="eager")
    assert support.verified(row("h200"), [other], tmp_path) == "nothing: not yet run"


def test_a_later_failure_shows(tmp_path):
    found = [result(), result(day="2026-12-03", outcome="failed", sha="d" * 40)]
    text = support.verified(row("h200"), found, tmp_path)
    assert "FAILED natively: 8,993 of 9,000 checks, 386 cases, commit ddddddd" in text


def test_an_unknown_device_is_unverified(tmp_path):
    text = support.table(matrix.rows(), [result(row=None)], tmp_path)
    assert "| NVIDIA H200, which the matrix does not know | `triton` | unverified; 9,000 of 9,000 checks" in text


def test_the_table_goes_between_the_markers(hardware_ci, tmp_path):
    readme, folder = tmp_path / "README.md", tmp_path / "results"
    folder.mkdir()
    readme.write_text(README, encoding="utf-8")
    arguments = ("--readme", readme, "--results", folder, "--plots", tmp_path / "plots")
    stale = hardware_ci("report", "--check", *arguments)
    assert stale.exit_code == 1 and "not up to date" in stale.stderr and readme.read_text(encoding="utf-8") == README
    done = hardware_ci("report", *arguments)
    assert done.exit_code == 0 and "no result yet" in done.stdout
    text = readme.read_text(encoding="utf-8")
    assert text.startswith("# A title\n\n") and text.endswith("\n\nThe rest.\n") and "\nold\n" not in text
    assert "| NVIDIA H200 (SXM or NVL) |" in text
    assert hardware_ci("report", "--check", *arguments).exit_code == 0


@pytest.mark.parametrize("text", ["no markers", support.END + support.BEGIN, README + support.END])
def test_a_readme_without_a_place_is_refused(hardware_ci, tmp_path, text):
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    found = hardware_ci("report", "--readme", tmp_path / "README.md", "--results", tmp_path)
    assert found.exit_code == 2 and "support:begin" in found.stderr


def test_a_file_that_is_no_result_is_named(hardware_ci, tmp_path):
    (tmp_path / "README.md").write_text(README, encoding="utf-8")
    (tmp_path / "odd.yaml").write_text("format: 99\n", encoding="utf-8")
    found = hardware_ci("report", "--readme", tmp_path / "README.md", "--results", tmp_path)
    assert found.exit_code == 2 and "odd.yaml" in "".join(found.stderr.replace("│", "").split())


def test_plots_of_a_whole_run(tmp_path):
    pytest.importorskip("matplotlib")
    drawn = plots.draw(result(steps={"benchmarks": timed()}), tmp_path)
    assert [path.name for path in drawn] == ["h200-time.png", "h200-floor.png", "h200-peers.png"]
    assert all(path.stat().st_size > 10_000 for path in drawn)
    assert plots.draw(result(), tmp_path) == []


def test_time_against_tokens_has_all_of_the_sweep():
    swept = plots.sweep(timed()["shapes"])
    assert [entry["tokens"] for entry in swept] == [512, 1024, 2048, 4096, 8192, 16384]
    assert {entry["gate"] for entry in swept} == {"channel"}


def test_the_committed_results_can_be_read_and_the_readme_agrees_with_them(hardware_ci, tmp_path):
    found = results.every()
    assert found and all(each.what["verdict"] for each in found)
    readme = places.README.read_text(encoding="utf-8")
    if support.BEGIN in readme:
        assert hardware_ci("report", "--check").exit_code == 0, "run python -m hardware_ci report"


def test_the_committed_workflow_is_up_to_date(hardware_ci, tmp_path):
    assert hardware_ci("workflow", "--check").exit_code == 0, "run python -m hardware_ci workflow"
    copied = tmp_path / "hardware.yml"
    shutil.copy(ROOT / ".github" / "workflows" / "hardware.yml", copied)
    copied.write_text(copied.read_text(encoding="utf-8").replace("h200", "h201"), encoding="utf-8")
    assert hardware_ci("workflow", "--check", "--out", copied).exit_code == 1


def test_the_workflow_has_a_job_per_runner():
    jobs = yaml.safe_load(workflow.text())["jobs"]
    runners = {f"device-{row.key}": list(row.runner) for row in matrix.rows() if row.runner}
    assert {name: job["runs-on"] for name, job in jobs.items()} == runners
    assert all(any("hardware_ci run" in step.get("run", "") for step in job["steps"]) for job in jobs.values())
