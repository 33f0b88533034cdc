"""``portable-gla plan``."""

from __future__ import annotations

import json

import pytest

import portable_gla


def test_the_plan_in_words_is_the_library_s(cli):
    result = cli("plan", "--device", "v100", "--tokens", "262144", "--key-dim", "256", "--value-dim", "512",
                 "--dtype", "float16")
    assert result.exit_code == 0
    for text in ("T=262144 H=4 K=256 V=512 float16", "training", "v100 (sm_70)", "backend ", "floor ",
                 "not reference:"):
        assert text in result.stdout


def test_every_option_reaches_the_problem(cli):
    result = cli("plan", "--json", "--device", "h200", "--tokens", "1000", "--heads", "6", "--q-heads", "3",
                 "--k-heads", "2", "--v-heads", "1", "--gate-heads", "6", "--key-dim", "24", "--value-dim", "40",
                 "--dtype", "float16", "--gate-dtype", "float32", "--gate", "head", "--mode", "infer", "--packed",
                 "--sequences", "5", "--reverse", "--bonus", "--initial-state", "--final-state", "--pin", "segments=1")
    problem = json.loads(result.stdout)["problem"]
    expected = {"tokens": 1000, "heads": 6, "q_heads": 3, "k_heads": 2, "v_heads": 1, "gate_heads": 6, "key_dim": 24,
                "value_dim": 40, "dtype": "float16", "gate_dtype": "float32", "gate": "head", "training": False,
                "mode": "attention", "packed": True, "sequences": 5, "reverse": True, "bonus": True,
                "initial_state": True, "final_state": True, "pins": {"segments": 1}}
    assert {name: problem[name] for name in expected} == expected
    assert problem["device"]["kind"] == "h200"


def test_json_holds_the_reasons_and_the_cost(cli):
    found = json.loads(cli("plan", "--json", "--device", "a100", "--dtype", "bfloat16").stdout)
    assert found["backend"] is not None and found["schedule"]["bytes_forward"] > 0
    assert found["cost"]["compulsory_forward"] == 1280 * 4096 * 4
    assert {"code", "text", "hint"} == set(found["reasons"]["reference"][0])


def test_decode_has_a_state_in_and_out(cli):
    problem = json.loads(cli("plan", "--json", "--mode", "decode", "--tokens", "1", "--batch", "8").stdout)["problem"]
    assert problem["mode"] == "decode" and problem["initial_state"] and problem["final_state"]


@pytest.mark.parametrize("name", ["cpu", "MI300X", "910B4", None])
def test_devices_by_other_names(cli, name):
    assert cli("plan", *([] if name is None else ["--device", name])).exit_code == 0


def test_nothing_serves_it_is_1_and_says_why(cli):
    result = cli("plan", "--backend", "eager", "--pin", "segments=2")
    assert result.exit_code == 1
    assert "backend   none ('eager' was asked for)" in result.stdout and "segments=2" in result.stdout
    assert json.loads(cli("plan", "--json", "--backend", "eager", "--pin", "segments=2").stdout)["backend"] is None


@pytest.mark.parametrize(("arguments", "words"), [
    (["--device", "v101"], ["--device", "expected one of", "v100", "'v101'"]),
    (["--device", "cuda:7"], ["--device", "expected one of", "'cuda:7'"]),
    (["--tokens", "-1"], ["--tokens", "expected an integer of 0 or more", "'-1'"]),
    (["--tokens", "many"], ["--tokens", "expected an integer", "'many'"]),
    (["--heads", "0"], ["--heads", "expected an integer of 1 or more", "'0'"]),
    (["--k-heads", "3"], ["--k-heads", "expected a divisor of heads=4", "3"]),
    (["--key-dim", "0"], ["--key-dim", "expected an integer of 1 or more", "'0'"]),
    (["--dtype", "int8"], ["--dtype", "int8", "bfloat16"]),
    (["--gate", "vector"], ["--gate", "vector", "channel"]),
    (["--mode", "test"], ["--mode", "test", "decode"]),
    (["--backend", "cudnn"], ["--backend", "expected one of", "eager", "'cudnn'"]),
    (["--pin", "segments"], ["--pin", "NAME=INTEGER", "'segments'"]),
    (["--pin", "segments=0"], ["--pin", "'segments=0'"]),
    (["--sequences", "3"], ["--sequences", "--packed", "3"]),
    (["--packed", "--batch", "2"], ["--batch", "expected 1 with --packed", "2"]),
    (["--mode", "decode", "--reverse"], ["--mode", "--reverse", "decode"]),
    (["--devices", "0"], ["--devices", "expected an integer of 1 or more", "'0'"]),
    (["--layers", "0"], ["--layers", "expected an integer of 1 or more", "'0'"]),
    (["--keep", "disk"], ["--keep", "disk", "stream"]),
    (["--keep", "stream", "--devices", "2"], ["--keep", "expected devices=1"]),
    (["--layers", "2", "--mode", "decode"], ["--mode", "decoding step"]),
    (["--nonsense"], ["--nonsense"]),
    (["extra"], ["extra"]),
])
def test_a_wrong_argument_is_2_and_named(cli, arguments, words):
    result = cli("plan", *arguments)
    message = " ".join(result.stderr.replace("│", " ").split())
    assert result.exit_code == 2 and result.stdout == ""
    assert "Traceback" not in message
    for word in words:
        assert word in message, message


def test_the_json_of_a_plan_is_that_of_the_library(cli):
    found = json.loads(cli("plan", "--json", "--device", "t4", "--dtype", "float32", "--mode", "infer").stdout)
    direct = portable_gla.plan(portable_gla.Problem(4096, 4, 128, 128), device="t4")
    assert found["backend"] == direct.backend
    assert found["cost"]["floor_forward"] == direct.cost.floor_forward


def test_a_long_context_over_several_devices(cli):
    arguments = ("plan", "--device", "v100", "--devices", "8", "--tokens", "262144", "--layers", "24", "--heads", "4",
                 "--key-dim", "256", "--value-dim", "512", "--mode", "train", "--dtype", "float16")
    result = cli(*arguments)
    assert result.exit_code == 0
    for text in ("T=32768 of 262144 on each; 24 layers", "GiB at the peak on each", "moves ", "hides behind",
                 "with --keep device (this plan)", "with --keep all"):
        assert text in result.stdout
    found = json.loads(cli(*arguments, "--keep", "all", "--json").stdout)
    assert found["long"]["keep"] == "all" and found["long"]["host_bytes"] > found["long"]["device_bytes"]
    assert set(found["long"]["largest_tokens"]) == {"device", "states", "all"}
    assert found["problem"]["tokens"] == 32768
    assert "long" not in json.loads(cli("plan", "--json").stdout)
