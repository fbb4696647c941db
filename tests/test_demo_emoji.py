"""The demo on emoji: its splits, texts, pictures and training, and a tiny run of the command."""

import json
import sys
from dataclasses import replace

import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra [eval]")
pytest.importorskip("PIL", reason="needs the extra [eval]")

from grainrank.__main__ import main
from grainrank.checkpoints import Checkpoints
from grainrank.data import emoji as data
from grainrank.demo import clip, emoji, emoji_pictures, emoji_texts, loop
from grainrank.demo.training import Recipe, run_side_by_side

COUNT = 96  # emoji of the tiny data, spread over all groups


@pytest.fixture(scope="module")
def tiny():
    """Every 16th emoji or so, with its pictures."""
    whole = data.load()
    kept = torch.linspace(0, len(whole) - 1, COUNT).long()
    rows = kept.tolist()

    def some(values):
        return tuple(values[i] for i in rows)

    fields = ("characters", "codes", "names", "tags", "keywords", "short_codes", "groups")
    few = replace(
        whole,
        **{name: some(getattr(whole, name)) for name in (*fields, "subgroups")},
        translations={key: some(values) for key, values in whole.translations.items()},
        translated_tags={key: some(values) for key, values in whole.translated_tags.items()},
        grains=torch.stack([whole.grains[kept, 0], whole.grains[kept, 1], torch.arange(COUNT)], 1),
    )
    return few, {style: data.pictures(style)[kept.numpy()] for style in data.STYLES}


@pytest.fixture
def task(tiny, monkeypatch):
    """The task on the tiny data with a tiny model."""
    monkeypatch.setattr(data, "load", lambda: tiny[0])
    monkeypatch.setattr(data, "pictures", lambda style: tiny[1][style])
    monkeypatch.setattr(emoji, "BATCH", 32)
    monkeypatch.setattr(emoji_texts, "VOCABULARY", 300)
    for name, value in {"WIDTH": 16, "PROJECTION": 16, "HEADS": 2, "STEM": 8}.items():
        monkeypatch.setattr(clip, name, value)
    return emoji.EmojiTask


# Data


def test_the_splits_cover_all_emoji_once_and_unseen_ones_are_not_trained_on():
    splits = emoji.split(1586)
    train = splits.pop("train")
    assert sorted(torch.cat(list(splits.values())).tolist()) == list(range(1586))
    seen = torch.cat([splits["validation_seen"], splits["test_seen"]])
    assert sorted(train.tolist()) == sorted(seen.tolist())
    sizes = {name: len(rows) for name, rows in splits.items()}
    assert sizes == {
        "validation_seen": 152, "validation_unseen": 79, "test_seen": 1117, "test_unseen": 238,
    }  # fmt: skip
    again = emoji.split(1586)
    assert all(torch.equal(rows, again[name]) for name, rows in splits.items())


def test_training_knows_nothing_of_unseen_emoji_and_of_the_style_of_the_test(task, tiny):
    few, pictures = tiny
    made = task()
    unseen = {name for name, q in made.queries.items() if "unseen" in name for name in q.texts}
    generator = torch.Generator().manual_seed(emoji.SPLIT_SEED)
    texts = [emoji_texts.texts_of(few, i, generator) for i in made.seen.tolist()]
    assert [some[0] for some in texts] == [few.names[i] for i in made.seen.tolist()]
    assert not unseen & {some[0] for some in texts}
    assert len(made.texts.ids) == sum(map(len, texts)) == int(made.texts.counts.sum())
    for style, found in zip(("noto", "twemoji"), made.pictures, strict=True):
        alpha = torch.from_numpy(pictures[style][made.seen.numpy(), ..., 3] / 255).float()
        torch.testing.assert_close(found[:, 3], alpha)
    assert made.candidates.shape == (COUNT, 3, 32, 32)


def test_the_tokenizer_is_the_same_each_time_and_cuts_long_texts(tiny):
    names = list(tiny[0].names)
    first, again = (emoji_texts.make_tokenizer(names) for _ in range(2))
    assert first.get_vocab() == again.get_vocab()
    assert first.token_to_id("[pad]") == emoji_texts.PAD
    assert first.token_to_id("[end]") == emoji_texts.END
    ids = emoji_texts.encode(first, ["Grinning FACE", "grinning face", "face " * 40, ""])
    assert torch.equal(ids[0], ids[1])
    assert ids[2, -1] == emoji_texts.END
    assert ids[3].tolist() == [emoji_texts.END] + [emoji_texts.PAD] * (emoji_texts.LENGTH - 1)
    assert ((ids == emoji_texts.END).sum(1) == 1).all()


def test_texts_are_drawn_of_their_own_emoji_and_most_are_its_name(task):
    texts = task().texts
    rows = torch.arange(len(texts.counts)).repeat(200)
    drawn = texts.draw(rows, torch.Generator().manual_seed(0))
    assert torch.equal(drawn, texts.draw(rows, torch.Generator().manual_seed(0)))
    named = (drawn == texts.ids[texts.starts[rows]]).all(1).double().mean().item()
    others = (1 - emoji_texts.NAME_SHARE) * (1 - 1 / texts.counts.double()).mean().item()
    assert named == pytest.approx(1 - others, abs=0.03)
    for row in (0, 7, len(texts.counts) - 1):
        start = int(texts.starts[row])
        own = {tuple(x) for x in texts.ids[start : start + int(texts.counts[row])].tolist()}
        assert {tuple(x) for x in drawn[rows == row].tolist()} <= own


def test_augmented_pictures_are_repeatable_and_near_the_picture(monkeypatch):
    pictures = emoji_pictures.load_pictures("noto")[:64]

    def augmented(seed):
        return emoji_pictures.augment(pictures, torch.Generator().manual_seed(seed))

    assert torch.equal(augmented(0), augmented(0))
    assert not torch.equal(augmented(0), augmented(1))
    assert augmented(0).isfinite().all()
    for limit in ("ROTATION", "ZOOM", "SHIFT", "COLOUR"):
        monkeypatch.setattr(emoji_pictures, limit, 0.0)
    plain, still = emoji_pictures.on_white(pictures), augmented(0)
    on_white = (still - plain).abs().amax((1, 2, 3)) < 1e-4
    assert 16 < on_white.sum() < 48  # half of them; the others differ where they are transparent
    opaque = pictures[:, 3:] == 1
    difference = (still - plain).abs() * opaque
    assert difference.max() < 1e-4


# Training


def test_the_stem_gives_one_vector_for_each_patch(task):
    model = clip.make_clip(50, 0)
    assert model.vision_model.embeddings.patch_embedding(torch.zeros(2, 3, 32, 32)).shape == (
        2, 16, 4, 4,
    )  # fmt: skip


def test_padding_changes_no_embedding(task):
    model = clip.make_clip(50, 0).eval()
    ids = torch.tensor([[7, 9, emoji_texts.END, 0, 0], [7, 9, 4, 8, emoji_texts.END]])
    with torch.inference_mode():
        together = clip.embed_texts(model, ids)
        alone = clip.embed_texts(model, ids[:1])
    torch.testing.assert_close(together[:1], alone, rtol=1e-4, atol=1e-5)


def test_infonce_is_the_loss_of_the_finest_grain_alone(task):
    made = task()
    model = clip.make_clip(made.vocabulary, 0)
    rows = torch.arange(32)

    def loss(recipe):
        return made.loss(model, recipe, rows, torch.Generator().manual_seed(3))

    alone = Recipe("multi_level", 0.1, 1, level_weights=(0.0, 0.0, 1.0))
    infonce = loss(Recipe("infonce", 0.1, 1))
    torch.testing.assert_close(loss(alone), infonce)
    assert loss(Recipe("multi_level", 0.1, 1)) > infonce


def test_training_learns_is_repeatable_and_leaves_the_random_state_alone(task):
    made = task()
    recipe = Recipe("multi_level", 0.1, 20)
    state = torch.random.get_rng_state()
    steps = []

    def job(on_step):
        return made.train(recipe, 0, on_step)

    trained, again = run_side_by_side([job, job], lambda: steps.append(1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert len(steps) == 2 * made.steps(recipe) == 2 * 20 * 4
    for a, b in zip(trained.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)

    def loss(model):
        rows = torch.arange(64)
        with torch.inference_mode():
            return made.loss(model, recipe, rows, torch.Generator().manual_seed(9)).item()

    assert loss(trained) < 0.8 * loss(clip.make_clip(made.vocabulary, 0))


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(task, tmp_path, monkeypatch):
    """The draws of the texts and of the changed pictures go on too."""
    monkeypatch.setattr(loop, "EVERY", 0.0)
    made, recipe = task(), Recipe("multi_level", 0.1, 4)
    checkpoints = Checkpoints(tmp_path, "test")

    def weights(name, on_step):
        model = made.train(recipe, 0, on_step, loop.Position(checkpoints.of(name)))
        return model.state_dict()

    steps = iter(range(10))  # of 16
    with pytest.raises(StopIteration):
        weights("stopped", lambda: next(steps))
    done = []
    continued = weights("stopped", lambda: done.append(1))
    assert len(done) == 2 * 4
    for a, b in zip(continued.values(), weights("whole", lambda: None).values(), strict=True):
        assert torch.equal(a, b)


# The command


def test_the_command_writes_results_examples_picture_and_table(task, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="needs the extra [plot]")
    out = tmp_path / "out"
    arguments = ["demo", "--data", "emoji", "--out", str(out), "--seeds", "2", "--epochs", "1"]
    assert main(arguments) == 0
    found = json.loads((out / "results.json").read_text())
    assert found["data"]["name"] == "emoji"
    assert found["data"]["grains"]["group"] == 8
    assert found["data"]["grains"]["emoji"] == found["data"]["candidates"] == COUNT
    assert found["data"]["queries"]["train"] == 2 * (COUNT - 14 - 5)
    assert list(found["methods"]) == ["infonce", "multi_level"]
    for method in found["methods"].values():
        assert method["seeds"] == [0, 1]
        for split in ("test_seen", "test_unseen"):
            assert method["splits"][split]["queries"] == found["data"]["queries"][split]
            assert all(
                abs(sum(row) - 1) < 1e-9 and len(row) == 4
                for row in method["splits"][split]["levels_by_rank"]
            )
    assert len(found["examples"]["queries"]) == 10
    assert (out / "grain_blindness.png").read_bytes().startswith(b"\x89PNG")
    printed = " ".join(capsys.readouterr().out.split())
    assert "emoji never seen in training, unseen style (14 queries)" in printed
    assert "labels that InfoNCE is not given" in printed


def test_tuning_compares_the_baselines_recipes_on_the_validation_queries(task, capsys):
    arguments = ["demo", "--data", "emoji", "--tune", "--seeds", "1", "--epochs", "2"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert printed.count("infonce t 0.1,") == 2
    assert "multi_level" not in printed


@pytest.mark.parametrize("damage", ["cut", "one byte", "missing"])
@pytest.mark.parametrize("name", ["emoji.jsonl", "sheet_noto.png"])
def test_a_damaged_file_is_one_line(name, damage, tmp_path, monkeypatch, capsys):
    for file in data._FOLDER.iterdir():
        content = file.read_bytes()
        if file.name == name:
            middle = len(content) // 2
            content = {"cut": content[:middle], "missing": b""}.get(
                damage, content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
            )
        if (file.name, damage) != (name, "missing"):
            (tmp_path / file.name).write_bytes(content)
    monkeypatch.setattr(data, "_FOLDER", tmp_path)
    assert main(["demo", "--data", "emoji", "--out", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr().err
    assert (
        f"{tmp_path / name} {'cannot be read' if damage == 'missing' else 'is damaged'}" in printed
    )
    assert printed.endswith("it is part of grainrank: install that anew\n")
    assert printed.count("\n") == 1


@pytest.mark.parametrize("missing", ["transformers", "PIL"])
def test_without_an_extra_the_demo_says_what_to_install(missing, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, missing, None)
    assert main(["demo", "--data", "emoji", "--out", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr().err
    assert "pip install 'grainrank[eval]'" in printed
    assert printed.count("\n") == 1
