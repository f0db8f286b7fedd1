"""The report as a user sees it: in a browser."""

import json
import subprocess

import debian
import pytest
from PIL import Image
from scaling_data import TEXT, points, runs

from pixtok.scaling import fit, report

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars --window-size=1100,2400"
).split()


@pytest.mark.slow
def test_a_browser_shows_text_and_figures(tmp_path):
    if reason := debian.lacks(["chromium"], "chromium"):
        pytest.skip(reason)
    study = fit.study(runs(points(TEXT, noise=1e-3)), bootstraps=20)
    file = tmp_path / "report.html"
    file.write_text(report.whole({"bpd_8bit": study}, ["pixtok report RUNS"], [], "Scaling laws"))

    def browse(*args: str) -> str:
        command = ["chromium", *FLAGS, f"--user-data-dir={tmp_path}/profile", *args, file.as_uri()]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout

    text = browse("--dump-dom")
    assert "<h1>Scaling laws</h1>" in text
    for wanted in ("IsoFLOP profiles", "95 % interval", "Checklist", "Besiroglu", "pixtok report RUNS"):
        assert wanted in text
    assert text.count("<svg") == 7
    content = text[text.index("data-law") :]
    assert json.loads(content[content.index(">") + 1 : content.index("</script>")])["state"] == "CONVERGED"

    browse(f"--screenshot={tmp_path}/page.png")
    with Image.open(tmp_path / "page.png") as picture:
        colours = picture.convert("RGB").resize((275, 600)).getcolors(275 * 600)
    assert colours is not None
    assert len(colours) > 500  # figures were drawn, with their colours
