"""The report page: every section with its data, nothing loaded from outside, nothing that escapes."""

import re
from pathlib import Path

import pytest

from imagen_jax.errors import UserError
from imagen_jax.report.data import read_metrics
from imagen_jax.report.markup import duration, number, tag
from imagen_jax.report.page import write_report
from imagen_jax.report.style import DARK, LIGHT
from imagen_jax.report.training import bucket_label, data_share
from tests.report.report_page import ATTACK, Page, cells, colours, report, section


def test_sections_in_order(page: Page) -> None:
    assert [attributes["id"] for attributes in page.all("section")] == [
        "samples",
        "alignment",
        "held-out",
        "samplers",
        "thresholding",
        "super-resolution",
        "training",
        "cost",
        "photos",
        "commands",
        "configuration",
        "versions",
    ]
    assert page.text("title").startswith("Imagen cascade: demo")
    lede = page.text("header")
    assert "At guidance weight 4, 91.3% of the pictures" in lede and "6.1%" in lede and "4.2%" in lede


def test_nothing_is_loaded_from_outside(page: Page) -> None:
    assert not {"script", "link", "iframe", "object", "embed"} & {name for name, _ in page.elements}
    for _, attributes in page.elements:
        assert str(attributes.get("src", "data:image/")).startswith("data:image/")
        assert str(attributes.get("href", "#")).startswith("#")
        assert "url(" not in str(attributes.get("style"))
    assert "url(" not in page.text("style") and "@import" not in page.text("style")
    assert "http://" not in page.source and "https://" not in page.source


def test_links_lead_to_sections(page: Page) -> None:
    anchors = {attributes.get("id") for _, attributes in page.elements}
    assert page.all("a")
    assert {str(a["href"])[1:] for a in page.all("a")} <= anchors


def test_captions_cannot_inject(page: Page) -> None:
    assert page.all("script") == []
    assert ATTACK in section(page, "samples").text("figcaption")
    assert f"Drawn for: {ATTACK}" in [a["alt"] for a in page.all("img")]
    assert "--gin.X='<a>'" in section(page, "commands").text("pre")


def test_samples_carry_their_captions(page: Page) -> None:
    part = section(page, "samples")
    assert colours(part) == [(9, 9, 9), (201, 0, 0), (201, 1, 0)]
    first = re.findall(r"<figcaption>.*?</figcaption>", part.source)[0]
    shown = re.sub(r"<.*?>", " ", first)
    assert "a red circle" in shown and "seed 70" in shown and "guidance 4.0, 2.0, 1.5" in shown
    assert "augmentation –, 0.1, 0.1" in shown and "sr2" not in shown
    assert "config 9f86d081884c…" in shown and 'title="9f86d081884c-7d659a2feaa0-c55ad015a3bf"' in first
    assert part.all("img")[1]["class"] == "pixels"


def test_alignment_table(page: Page) -> None:
    part = section(page, "alignment")
    assert [row[1:] for row in cells(part)[1:]] == [
        ["55.0%", "50.0%", "31.0%"],
        ["91.3%", "79.5%", "–"],
        ["85.0%", "70.0%", "41.0%"],
        ["6.1%", "", ""],
        ["4.2%", "", ""],
    ]
    marked = re.findall(r'<tr class="marked"><th scope="row">(.*?)</th>', part.source)
    assert len(marked) == 1 and marked[0].startswith("4<") and "best" in marked[0]
    assert "1,512 prompts" in part.text("p")
    assert "best: 4" in part.text("svg") and "unconditional 6.1%" in part.text("svg")


def test_held_out_differences(page: Page) -> None:
    rows = cells(section(page, "held-out"))[1:]
    assert [row[3] for row in rows] == ["−5.0 points", "−11.8 points", "−15.0 points"]


def test_samplers_stand_beside_each_other_by_network_calls(page: Page) -> None:
    part = section(page, "samplers")
    assert cells(part)[1:] == [
        ["2M", "4", "50.0%", "9.25"],
        ["2M", "8", "75.0%", "0.00"],
        ["Heun", "7", "62.5%", "3.50"],
    ]
    assert "320 prompts, guidance weight 2" in part.text("p") and "Heun" in part.text("li")


def test_thresholding_by_rule_and_weight(page: Page) -> None:
    part = section(page, "thresholding")
    assert re.findall(r"<h3>(.*?)</h3>", part.source) == ["Stage base", "Stage sr"]
    values = [["90.0%"] * 3 + ["1.0%"] * 3, ["70.0%", "60.0%", "50.0%", "0.0%", "10.0%", "20.0%"]]
    rows = cells(part)
    assert rows[1:3] == [["1", *values[0]], ["8", *values[1]]]
    assert rows[4:] == [["2", *values[0]], ["20", *values[1]]]
    assert colours(part) == [(77, 7, 7), (78, 8, 8)]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("samplers.json", '{"samplers": {"2M": {"calls": [1, 2], "alignment": [0.5], "image_error": [1, 2]}}}'),
        ("samplers.json", '{"samplers": 3}'),
        ("thresholds.json", '{"guidance_weights": [1, 2], "rules": {"none": {"alignment": [1], "saturated": [1]}}}'),
        ("thresholds.json", "{}"),
    ],
)
def test_a_malformed_sweep_is_named(run_dir: Path, file: str, content: str) -> None:
    (run_dir / file).write_text(content)
    with pytest.raises(UserError, match=f"{file} is malformed"):
        write_report(str(run_dir))


def test_pairs_stand_base_first(page: Page) -> None:
    part = section(page, "super-resolution")
    assert colours(part) == [(200, 0, 0), (201, 0, 0), (200, 1, 0), (201, 1, 0)]
    assert "16×16 from the first stage, 64×64 super-resolved" in part.text("figcaption")


def test_training_section(page: Page) -> None:
    part = section(page, "training")
    assert re.findall(r"<h3>(.*?)</h3>", part.source) == ["Stage base", "Stage sr"]
    assert cells(part)[1] == ["base", "120", "1", "0.08333", "210", "25.0%"]
    titles = re.findall(r"<figcaption>([^<]*, base)</figcaption>", part.source)
    assert titles == [
        "Loss, base",
        "Loss by log-SNR, base",
        "Gradient norm, base",
        "Learning rate, base",
        "Speed, base",
        "Data and compute (25.0% waiting for data), base",
    ]
    for label in ("raw", "smoothed", "below −6", "−6 to 6", "above 6", "waiting for data"):
        assert label in part.text("li")
    # PreviewHook by rising step, not by name.
    assert colours(part)[:2] == [(4, 5, 6), (1, 2, 3)]
    assert part.text("figcaption").index("step 20") < part.text("figcaption").index("step 100")


def test_absent_measurements_say_so(page: Page) -> None:
    rows = {row[0]: row[1:3] for row in cells(section(page, "cost"))}
    assert rows["train base"] == ["50 min 00 s", "75.0%"]
    assert rows["export"][0] == rows["peak memory"][0] == "not measured"
    assert rows["in all"][0] == "1 h 07 min"
    assert rows["device"][0] == "cpu"


def test_photos_stand_beside_their_originals(page: Page) -> None:
    part = section(page, "photos")
    assert colours(part) == [(10, 20, 30), (11, 21, 31)]
    assert "waves at dusk" in part.text("figcaption")
    assert "PSNR 27.3 dB · colour drift 0.0123" in part.text("figcaption")


def test_commands_configuration_and_versions(page: Page) -> None:
    assert "train base" in section(page, "commands").text("h3")
    assert section(page, "configuration").text("summary").split() == ["base/config.gin", "sr/config.gin"]
    assert "spec.Stage.name = 'sr'  # <b>" in section(page, "configuration").text("details")
    rows = {row[0]: row[1:] for row in cells(section(page, "versions"))}
    assert rows["git_revision"] == ["abc123", "abc123", "–"]
    assert rows["jax"][:2] == ["–", "–"] and re.match(r"\d+\.\d+", rows["jax"][2])


@pytest.mark.parametrize(
    ("taken", "anchors"),
    [
        (["samples.png", "samples"], {"samples", "super-resolution"}),
        (["eval.json"], {"alignment", "held-out"}),
        (["metrics.json"], {"cost"}),
        (["photos.json"], {"photos"}),
        (["commands.json"], {"commands"}),
        (["base", "sr"], {"training", "configuration"}),
    ],
)
def test_missing_input_leaves_a_note(page: Page, run_dir: Path, taken: list[str], anchors: set[str]) -> None:
    whole = {str(a["id"]) for a in page.all("section")}
    for name in taken:
        (run_dir / name).rename(run_dir.parent / f"taken-{name}")
    partial = report(run_dir)
    assert {str(a["id"]) for a in partial.all("section")} == whole - anchors | {"left-out"}
    assert len(section(partial, "left-out").all("li")) == len(anchors)


def test_result_line_without_scores(run_dir: Path) -> None:
    (run_dir / "eval.json").unlink()
    assert "One photograph drawn from its caption, PSNR 27.3 dB." in report(run_dir).text("header")
    (run_dir / "photos.json").unlink()
    assert "Trained base for 120 steps and sr for 30 steps" in report(run_dir).text("header")


def test_nothing_to_report(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        write_report(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="nothing to report"):
        write_report(str(tmp_path))
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(UserError, match="single stage: give the cascade directory above"):
        write_report(str(tmp_path))
    assert not list(tmp_path.glob("*report*"))


def test_killed_run_loses_only_its_last_line(run_dir: Path) -> None:
    path = run_dir / "sr" / "metrics.jsonl"
    whole, _ = read_metrics(path)
    path.write_text(path.read_text() + '{"step": 40, "lo')
    records, cut_short = read_metrics(path)
    assert cut_short and records == whole
    assert "sr/metrics.jsonl was cut short" in section(report(run_dir), "training").text("p")


@pytest.mark.parametrize("line", ['{"step": 20, "lo', '{"loss": 0.5}', "[1, 2]", ""])
def test_corrupt_metrics_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 10}}\n{line}\n{{"step": 30}}\n')
    with pytest.raises(UserError, match="metrics.jsonl line 2 is"):
        read_metrics(path)


def test_resumed_run_replaces_repeated_steps(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 10, "loss": 3}\n{"step": 20, "loss": 2}\n{"step": 10, "loss": 1, "lr": 5}\n')
    assert read_metrics(path) == ([{"step": 10, "loss": 1, "lr": 5}, {"step": 20, "loss": 2}], False)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("eval.json", "{", "eval.json is not JSON"),
        ("eval.json", "[]", "holds a list; expected a dict"),
        ("eval.json", '{"alignment": {"strong": {}}}', '"alignment" must map guidance weights'),
        ("eval.json", '{"alignment": {"1.0": 3}}', '"alignment" must map guidance weights'),
        ("eval.json", "{}", "no dict 'alignment'"),
        ("commands.json", '[{"phase": "x"}]', "no str 'command'"),
        ("photos.json", '["x"]', "no str 'caption'"),
    ],
)
def test_malformed_files_are_named(run_dir: Path, name: str, content: str, message: str) -> None:
    (run_dir / name).write_text(content)
    with pytest.raises(UserError, match=re.escape(message)):
        write_report(str(run_dir))


def test_unreadable_picture_does_not_cost_the_report(run_dir: Path) -> None:
    (run_dir / "samples/00000.png").write_bytes(b"not a picture")
    (run_dir / "photos/drawn.png").unlink()
    page = report(run_dir)
    assert "00000.png: ImageError" in section(page, "samples").text("div")
    assert "drawn.png: FileNotFoundError" in section(page, "photos").text("div")


def test_failed_report_leaves_the_old_one(run_dir: Path) -> None:
    before = report(run_dir).source
    (run_dir / "eval.json").write_text("{")
    with pytest.raises(UserError):
        write_report(str(run_dir))
    assert (run_dir / "report.html").read_text("utf-8") == before
    assert [p.name for p in run_dir.iterdir() if "report" in p.name] == ["report.html"]


def test_accessible_structure(page: Page) -> None:
    levels = [int(name[1]) for name, _ in page.elements if re.fullmatch("h[1-6]", name)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))
    assert all(attributes.get("alt") for attributes in page.all("img"))
    assert all(a.get("aria-label") or a.get("aria-hidden") for a in page.all("svg"))
    assert all(a.get("tabindex") == "0" and a.get("aria-label") for a in page.all("div") if a.get("class") == "scroll")
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    assert page.all("html")[0]["lang"] == "en"


def luminance(colour: str) -> float:
    """Relative luminance by WCAG 2."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_contrast(theme: dict[str, str]) -> None:
    def contrast(a: str, b: str) -> float:
        dark, light = sorted((luminance(theme[a]), luminance(theme[b])))
        return (light + 0.05) / (dark + 0.05)

    for ground in ("bg", "card", "tint"):
        for ink in ("ink", "accent"):
            assert contrast(ink, ground) >= 4.5, (ink, ground)
    for ground in ("bg", "card"):
        assert contrast("soft", ground) >= 4.5
    for series in (name for name in theme if name[1:].isdigit()):
        assert contrast(series, "card") >= 3.0, series
    assert LIGHT.keys() == DARK.keys()


@pytest.mark.parametrize(
    ("key", "label"),
    [
        ("loss_by_log_snr/-inf..-6", "below −6"),
        ("loss/log_snr_-6_-3.5", "−6 to −3.5"),
        ("loss_by_log_snr/6..inf", "above 6"),
        ("loss", None),
        ("grad_norm", None),
    ],
)
def test_bucket_labels(key: str, label: str | None) -> None:
    assert bucket_label(key) == label


def test_data_share() -> None:
    assert data_share([{"data_s": 1.0, "compute_s": 3.0}, {"data_s": 0.0, "compute_s": 4.0}, {}]) == 1 / 8
    assert data_share([{"loss": 1.0}]) is None


def test_wording_of_numbers() -> None:
    values = (12345.6, 0.12345678, 0.00015, 0.0, -4.0, None, float("nan"))
    assert [number(v) for v in values] == ["12,346", "0.1235", "1.5e-4", "0", "-4", "–", "nan"]
    assert [duration(s) for s in (4.21, 59.99, 723.0, 3599.9)] == [
        "4.2 s",
        "1 min 00 s",
        "12 min 03 s",
        "1 h 00 min",
    ]


def test_tags_escape_text_and_attributes() -> None:
    assert tag("p", "<&>", title='"') == '<p title="&quot;">&lt;&amp;&gt;</p>'
    assert tag("p", tag("b", "x"), None, 3) == "<p><b>x</b>3</p>"
