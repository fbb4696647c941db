"""`grainrank evaluate` on what it cannot use: exit code 2, and one line that names the option."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from grainrank.__main__ import main


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two queries and three candidates, sound, and every file that is not."""
    from safetensors.torch import save_file

    monkeypatch.chdir(tmp_path)
    q, c = np.eye(2, 4, dtype=np.float32), np.eye(3, 4, dtype=np.float32)
    keys = np.arange(6).reshape(3, 2)
    arrays = {
        "q": q, "c": c, "flat": q[0], "ints": q.astype(np.int64), "wide": np.eye(3, 5),
        "nan": np.full_like(c, np.nan), "q-keys": keys[:2], "c-keys": keys, "float-keys": c,
        "flat-keys": keys[0], "one-key": keys[:, :1],
    }  # fmt: skip
    for name, array in arrays.items():
        np.save(f"{name}.npy", array)
    np.save("pickled.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.savez("archive.npz", q=q)
    Path("archive.npz").rename("archive.npy")
    save_file({"b": torch.eye(2, 4), "a": torch.eye(2, 4)}, "two.safetensors")
    texts = {
        "junk.safetensors": "junk", "q.txt": "one\ntwo\n", "c.txt": "x\ny\nz\n", "empty.txt": "",
        "qrels": "0 0 1 1\n", "three-columns": "0 1 1\n", "no-grade": "0 0 1 good\n",
        "twice": "0 0 1 1\n0 0 1 2\n", "others": "q1 0 d1 1\n", "negatives": "0 0 1 0\n",
        "high": "0 0 1 16\n", "spaces.txt": "a b\nc\n", "same.txt": "a\na\n",
        "q.tsv": "shop\titem\na\tb\na\tc\n", "c.tsv": "shop\tline\na\tb\na\tc\na\td\n",
        "one.tsv": "a\tb\na\tc\n", "short.tsv": "shop\titem\na\na\tc\n",
        "q.csv": "shop,item\na,b\na,c\n", "q.parquet": "",
    }  # fmt: skip
    for name, text in texts.items():
        Path(name).write_text(text)
    Path("latin").write_bytes(b"\xe9\n")


FILES = "--queries q.npy --candidates c.npy"
JUDGED = f"{FILES} --qrels qrels"
GRAINS = f"{FILES} --query-grains q-keys.npy --candidate-grains c-keys.npy"
TEXTS = "--model m --query-texts q.txt --candidate-texts c.txt"

ERRORS = {
    # options that belong together
    "": "either --model, or --queries and --candidates must be given, got neither",
    f"{JUDGED} --model m": "either --model, or --queries and --candidates must be given, got both",
    "--queries q.npy --qrels qrels": "--queries needs --candidates, got it alone; pass both",
    FILES: "exactly one of --data, --qrels, and --query-grains with --candidate-grains must be "
    "given, got 0",
    f"{GRAINS} --qrels qrels": "--candidate-grains must be given, got 2",
    f"{FILES} --query-grains q-keys.npy": "--query-grains needs --candidate-grains, got it alone",
    "--model m --qrels qrels": "--model needs --query-texts and --candidate-texts, or --data",
    "--model m --query-texts q.txt --qrels qrels": "--query-texts needs --candidate-texts",
    f"{JUDGED} --split de": "--split belongs to --data, got it without; leave it out",
    f"{JUDGED} --device cpu": "--device belongs to --model, got it without",
    f"{JUDGED} --query-prompt x": "--query-prompt belongs to --model, got it without",
    f"{JUDGED} --match count": "--match belongs to --query-grains, got it without",
    f"{JUDGED} --depth 3": "--depth belongs to --run, got it without",
    f"{TEXTS} --data emoji": "--query-texts belongs to --model without --data, got it without",
    f"{FILES} --data emoji --query-ids q.txt": "--query-ids belongs to --qrels or grains",
    f"{FILES} --data emoji --split zh": "--split must be one of keywords, de, fr",
    f"{TEXTS} --qrels qrels --device toaster": "--device must be such as cpu or cuda:0, "
    "got toaster",
    # embeddings
    f"{FILES} --data emoji": "--queries must have one row for each of the 2,874 queries of emoji, "
    "English keyword to name, got 2; grainrank.evaluation.built_in_task gives the texts",
    "--queries no.npy --candidates c.npy --qrels qrels": "--queries must be a file that can be "
    "read, got no.npy: No such file or directory",
    "--queries q.txt --candidates c.npy --qrels qrels": "--queries must be FILE.npy, "
    "FILE.safetensors or FILE.safetensors:NAME, got q.txt; save the array with numpy.save",
    "--queries q.npy:x --candidates c.npy --qrels qrels": "--queries must be FILE.npy, "
    "FILE.safetensors or FILE.safetensors:NAME, got q.npy:x",
    "--queries pickled.npy --candidates c.npy --qrels qrels": "--queries must be an array that "
    "numpy.save wrote, got pickled.npy",
    "--queries archive.npy --candidates c.npy --qrels qrels": "--queries must be one array, got an "
    "archive in archive.npy",
    "--queries two.safetensors --candidates c.npy --qrels qrels": "--queries must name one of the "
    "tensors a, b of two.safetensors, got no name; write two.safetensors:a",
    "--queries two.safetensors:x --candidates c.npy --qrels qrels": "--queries must name one of "
    "the tensors a, b of two.safetensors, got 'x'",
    "--queries junk.safetensors --candidates c.npy --qrels qrels": "--queries must be a "
    "safetensors file, got junk.safetensors",
    "--queries no.safetensors --candidates c.npy --qrels qrels": "--queries must be a file that "
    "can be read, got no.safetensors",
    "--queries flat.npy --candidates c.npy --qrels qrels": "--queries must have shape [rows, D], "
    "got (4,)",
    "--queries ints.npy --candidates c.npy --qrels qrels": "queries must be float16, bfloat16, "
    "float32 or float64, got",
    "--queries q.npy --candidates wide.npy --qrels qrels": "candidates must have D = 4 features",
    "--queries q.npy --candidates nan.npy --qrels qrels": "candidates must be finite",
    # texts and ids
    f"{FILES} --qrels latin": "--qrels must be UTF-8 text, got other bytes in latin",
    f"{JUDGED} --query-ids c.txt": "--query-ids must have one id for each of the 2 queries, got 3",
    f"{JUDGED} --query-ids spaces.txt": "--query-ids must have ids of one word, got 'a b' "
    "in line 1 of spaces.txt; a TREC file has its columns between spaces",
    f"{JUDGED} --query-ids same.txt": "--query-ids must name every item once, got 'a' in lines 1 "
    "and 2",
    f"{JUDGED} --query-ids empty.txt": "--query-ids must have one line an item, got the empty file",
    # judgements
    f"{FILES} --qrels no": "--qrels must be a file that can be read, got no: No such file",
    f"{FILES} --qrels three-columns": "--qrels must have four columns, query 0 document grade, got "
    "'0 1 1' in line 1 of three-columns",
    f"{FILES} --qrels no-grade": "--qrels must have integer grades, got '0 0 1 good' in line 1",
    f"{FILES} --qrels twice": "--qrels must judge a pair once, got a second judgement, '0 0 1 2'",
    f"{FILES} --qrels high": "--qrels must have grades up to 15, got '0 0 1 16'",
    f"{FILES} --qrels others": "--qrels must call a candidate relevant to a query, got none in "
    "others whose ids are both there (ids such as 0 and 0); pass --query-ids and --candidate-ids",
    f"{FILES} --qrels negatives": "--qrels must call a candidate relevant to a query, got none",
    # grains
    f"{GRAINS} --grain-names a": "--grain-names must name the 2 grains, coarse to fine, got 1: a",
    f"{FILES} --query-grains float-keys.npy --candidate-grains c-keys.npy": "--query-grains must "
    "hold integers, got float32 in float-keys.npy",
    f"{FILES} --query-grains flat-keys.npy --candidate-grains c-keys.npy": "--query-grains must "
    "have shape [rows, K], one column for each grain, got (2,)",
    f"{FILES} --query-grains c-keys.npy --candidate-grains c-keys.npy": "--query-grains must have "
    "one row for each of the 2 queries, got 3",
    f"{FILES} --query-grains q-keys.npy --candidate-grains one-key.npy": "--candidate-grains must "
    "have the 2 grains of --query-grains, got 1",
    f"{FILES} --query-grains one.tsv --candidate-grains one.tsv": "--query-grains must have "
    "one row for each of the 2 queries below its header, which names the grains, got 1",
    f"{FILES} --query-grains q.tsv --candidate-grains q.csv": "--candidate-grains must be a file "
    "like --query-grains, .tsv, got q.csv",
    f"{FILES} --query-grains q.parquet --candidate-grains q.parquet": "--query-grains must be "
    ".npy, .tsv or .csv, got q.parquet",
    f"{FILES} --query-grains q.tsv --candidate-grains c.tsv": "--candidate-grains must have the "
    "columns of --query-grains, shop, item, got shop, line",
    f"{FILES} --query-grains short.tsv --candidate-grains c.tsv": "--query-grains must have 2 "
    "columns like its header, got 1 in line 2 of short.tsv",
    # metrics and outputs
    f"{JUDGED} --gain 0,1,2": "gain must hold L + 1 = 2 numbers",
    f"{JUDGED} --workspace-mb -1": "workspace_mb must be positive and finite, got -1",
    f"{JUDGED} --out no/report.json": "No such file or directory: 'no/report.json'",
}


@pytest.mark.parametrize("given", ERRORS)
def test_errors(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", *given.split()]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("grainrank evaluate: ")
    assert ERRORS[given] in err
    assert (out, err.count("\n")) == ("", 1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--ks 0", "argument --ks: must be numbers from 1 on, such as 1,10, got 0"),
        ("--ks 1,x", "argument --ks: must be numbers from 1 on, such as 1,10, got 1,x"),
        (
            "--gain cubic",
            "argument --gain: must be linear, exp2, or numbers such as 0,1,4, got cubic",
        ),
        ("--depth 0", "argument --depth: must be 1 or more, got 0"),
        ("--data cats", "argument --data: invalid choice: 'cats'"),
    ],
)
def test_errors_of_the_parser(given: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", *JUDGED.split(), *given.split()])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("package", "given", "message"),
    [
        ("safetensors", "--queries two.safetensors:a --candidates c.npy --qrels qrels",
         "two.safetensors needs safetensors: pip install 'grainrank[eval]'"),
        ("sentence_transformers", f"{TEXTS} --qrels qrels",
         "--model needs sentence-transformers: pip install 'grainrank[eval]'"),
        ("matplotlib", f"{JUDGED} --picture p.png",
         "--picture needs matplotlib: pip install 'grainrank[plot]'"),
    ],
)  # fmt: skip
def test_missing_packages(
    package: str,
    given: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["evaluate", *given.split()]) == 2
    assert message in capsys.readouterr().err
