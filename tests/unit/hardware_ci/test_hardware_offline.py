"""The offline table: every build has a row, and the rules that fail do."""

from __future__ import annotations

import json
import sys
import textwrap

import pytest
import yaml

from hardware_ci import offline
from hardware_ci.offline import Allowed, Row

MODULE = '''
import os
from dataclasses import dataclass

TARGETS = ("sm_80", "sm_90", "gfx942")

@dataclass(frozen=True)
class Build:
    kernel: str
    target: str
    configuration: dict

@dataclass(frozen=True)
class Compiled:
    build: Build
    registers: int
    spills: int
    shared: int
    shared_limit: int
    warps: int
    occupancy: float
    seconds: float
    error: str

def builds(targets, sample):
    for target in targets:
        for dim in (64,) if sample else (64, 128):
            yield Build("forward", target, {"dim": dim, "tile": (16, 16)})

def compile_one(build):
    FAULT
    return Compiled(build, 128, 0, 1000, 2000, 4, 2.0, 0.5, "")
'''


@pytest.fixture
def compile_(hardware_ci, tmp_path, monkeypatch):
    """Compile a backend "fake" whose ``compile_one`` starts with a fault; gives the outcome and the document."""

    def run(*arguments, fault="pass", name="fake"):
        package = tmp_path / f"portable_gla_{name}"
        package.mkdir(exist_ok=True)
        (package / "__init__.py").touch()
        text = MODULE.replace("    FAULT", textwrap.indent(textwrap.dedent(fault), "    "))
        (package / "offline.py").write_text(text, encoding="utf-8")
        monkeypatch.syspath_prepend(tmp_path)
        out = tmp_path / "table.md"
        result = hardware_ci("compile", "--backend", name, "--out", out, *arguments)
        path = out.with_suffix(".yaml")
        return result, yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else None

    return run


def test_a_table_as_markdown_and_yaml(compile_, tmp_path):
    result, found = compile_("--json")
    assert result.exit_code == 0, result.stdout
    assert found["builds"] == len(found["rows"]) == 6 and found["broken"] == 0 and not found["sample"]
    assert found["rows"][0] == {
        "kernel": "forward", "target": "sm_80", "configuration": {"dim": 64, "tile": [16, 16]}, "registers": 128,
        "spills": 0, "shared": 1000, "shared_limit": 2000, "warps": 4, "occupancy": 2.0, "broken": ""}
    assert json.loads(result.stdout)["ok"]
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "| sm_90 | `forward` | dim 128, tile [16, 16] | 128 | 0 | 1,000 of 2,000 | 4 | 2 |  |" in text
    assert "every build" in text


def test_targets_a_sample_and_what_was_compiled_in_a_few_words(compile_, tmp_path):
    result, found = compile_("--targets", "sm_90", "--sample", "--jobs", "1", name="fakesample")
    assert result.exit_code == 0 and [row["target"] for row in found["rows"]] == ["sm_90"] and found["sample"]
    (tmp_path / "table.yaml").rename(tmp_path / "fakesample.yaml")
    assert offline.summary("fakesample", "sm_90", tmp_path) == "compiled for sm_90: a sample of 1 builds"
    assert offline.summary("fakesample", "sm_80", tmp_path) == offline.summary("other", "sm_90", tmp_path) == ""


def test_what_else_a_backend_has_to_say(compile_, tmp_path):
    result, found = compile_(name="fakeextra", fault='''
        class Told(Compiled):
            extra = {"hmma": 64, "key": "k"}
        return Told(build, 128, 0, 1000, 2000, 4, 2.0, 0.5, "")
    ''')
    assert result.exit_code == 0 and all(row["extra"] == {"hmma": 64, "key": "k"} for row in found["rows"])
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "| blocks (predicted) | hmma | |" in text
    assert "| sm_90 | `forward` | dim 128, tile [16, 16] | 128 | 0 | 1,000 of 2,000 | 4 | 2 | 64 |  |" in text


def test_what_the_table_has_is_not_compiled_again(compile_, tmp_path, monkeypatch):
    counted = f'''
        class Told(Compiled):
            extra = {{"key": f"{{build.target}} {{build.configuration['dim']}}"}}
        with open("{tmp_path / 'log'}", "a") as log:
            log.write("x")
        wrong = "spills" if build.target == "sm_80" and build.configuration["dim"] == 64 else ""
        return Told(build, 128, 0, 1000, 2000, 4, 2.0, 0.5, wrong)
    '''
    text = MODULE + "\ndef key(build):\n    return f\"{build.target} {build.configuration['dim']}\"\n"
    monkeypatch.setattr(sys.modules[__name__], "MODULE", text)
    for arguments, made in (((), 6), ((), 7), (("--again",), 13)):  # the wrong one is tried again
        result, found = compile_(*arguments, "--jobs", "1", name="fakekeys", fault=counted)
        assert result.exit_code == 1 and len(found["rows"]) == 6 and found["broken"] == 1
        assert len((tmp_path / "log").read_text(encoding="utf-8")) == made


def test_a_build_that_stands_has_its_present_name(compile_, tmp_path, monkeypatch):
    keyed = MODULE + "\ndef key(build):\n    return f\"{build.target} {build.configuration['dim']}\"\n"
    fault = """
        class Told(Compiled):
            extra = {"key": key(build)}
        return Told(build, 128, 0, 1000, 2000, 4, 2.0, 0.5, "")
    """
    monkeypatch.setattr(sys.modules[__name__], "MODULE", keyed)
    compile_("--jobs", "1", name="fakenamed", fault=fault)
    monkeypatch.setattr(sys.modules[__name__], "MODULE", keyed.replace("(16, 16)", "(32, 16)"))
    result, found = compile_("--jobs", "1", name="fakerenamed", fault="raise AssertionError")
    assert result.exit_code == 0 and found["broken"] == 0
    assert {tuple(row["configuration"]["tile"]) for row in found["rows"]} == {(32, 16)}


def test_an_error_and_a_compiler_that_dies_are_rows_that_fail(compile_):
    result, found = compile_("--targets", "sm_80,gfx942", name="fakedies", fault='''
        if build.configuration["dim"] == 128:
            if build.target == "sm_80":
                os._exit(1)
            raise ValueError("no such instruction")
    ''')
    assert result.exit_code == 1 and found["broken"] == 2
    assert [row["broken"] for row in found["rows"]] == [
        "", "the process that compiled it died", "", "ValueError: no such instruction"]
    assert "FAILED  gfx942 forward" in result.stdout


@pytest.mark.parametrize(("row", "words"), [
    (Row("k", "sm_90", spills=0, shared=10, shared_limit=10), ""),
    (Row("k", "sm_90", error="does not compile"), "does not compile"),
    (Row("k", "gfx942", shared=11, shared_limit=10), "11 bytes of shared memory, of 10"),
    (Row("k", "sm_80", spills=8), "8 bytes of spills"),
    (Row("k", "sm_90", spills=8), "8 bytes of spills"),
    (Row("k", "sm_70", spills=8), "8 bytes of spills"),
    (Row("k", "sm_100", spills=8), ""),
    (Row("k", "gfx942", spills=None), ""),
])
def test_rules(row, words):
    assert offline.broken(row) == words


def test_a_listed_spill_is_allowed_up_to_its_bytes():
    allowed = [Allowed("for*", "sm_80", 24, "measured faster", {"dim": 256})]
    row = Row("forward", "sm_80", {"dim": 256, "warps": 8}, spills=24)
    assert not offline.broken(row, allowed) and not offline.unused(allowed, [row])
    for other in (Row("forward", "sm_80", {"dim": 256}, spills=32), Row("forward", "sm_80", {"dim": 128}, spills=8),
                  Row("forward", "sm_90", {"dim": 256}, spills=8), Row("backward", "sm_80", {"dim": 256}, spills=8)):
        assert offline.broken(other, allowed)
        assert offline.unused(allowed, [other]) == allowed


@pytest.mark.parametrize(("entry", "words"), [
    ({"reason": " "}, "expected a reason"),
    ({"bytes": 65}, "expected 1 to 64, got 65"),
    ({"byte": 5}, "byte"),
])
def test_the_list_of_allowed_spills_has_rules_too(tmp_path, entry, words):
    path = tmp_path / "allowed.yaml"
    path.write_text(yaml.safe_dump([{"kernel": "k", "target": "sm_80", "bytes": 8, "reason": "why", **entry}]),
                    encoding="utf-8")
    with pytest.raises(offline.OfflineError, match=words):
        offline.read_allowed(path)


def test_the_committed_list_is_right():
    offline.read_allowed()


@pytest.mark.parametrize(("arguments", "words"), [
    (["--backend", "nosuch"], ["--backend", "portable_gla_nosuch"]),
    (["--backend", "eager"], ["--backend", "offline"]),
    (["--backend", "eager", "--out", "table.txt"], ["--out", ".md"]),
    (["--jobs", "0"], ["--jobs"]),
])
def test_a_wrong_argument_is_2_and_named(hardware_ci, arguments, words):
    result = hardware_ci("compile", *arguments)
    message = " ".join(result.stderr.replace("│", " ").split())
    assert result.exit_code == 2
    for word in words:
        assert word in message, message


def test_an_unknown_target_is_2(compile_):
    result, _ = compile_("--targets", "sm_10", name="faketarget")
    assert result.exit_code == 2 and "sm_10" in result.stderr
