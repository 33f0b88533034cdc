"""The long-context command, on a CPU: its figures are there and its limits are held."""

import json

from hardware_ci import long_context


def test_it_runs(hardware_ci):
    small = ("--tokens", 8192, "--train-tokens", 300, "--layers", 2, "--heads", 1, "--head-dim", 16, "--samples", 1)
    result = hardware_ci("long", "--device", "cpu", "--json", *small)
    found = json.loads(result.stdout)
    assert result.exit_code == 0, found
    assert found["held"] == {"offload": True, "stream": True}
    assert set(found["offload"]["ratios"]) == {"device", "residuals", "all"}
    assert found["stream"]["peak_bytes"]["forward"] > 0
    text = hardware_ci("long", "--device", "cpu", *small)
    assert "streamed forward: T = 8192" in text.stdout


def test_a_wrong_result_fails(hardware_ci, monkeypatch):
    monkeypatch.setattr(long_context, "_relative", lambda found, expected: 0.5)
    result = hardware_ci("long", "--device", "cpu", "--tokens", 4096, "--train-tokens", 16, "--layers", 1, "--heads", 1,
                         "--head-dim", 8, "--samples", 1)
    assert result.exit_code == 1
    assert "'stream': False" in result.stdout
