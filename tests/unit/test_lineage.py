import hashlib
import json

import pytest

from otherside.lineage import ADAPTER_WEIGHTS, CARD, Card, Lineage, Merged, Training, sha256


def adapter_in(folder, content=b"weights"):
    folder.mkdir(parents=True)
    (folder / ADAPTER_WEIGHTS).write_bytes(content)
    return folder


def test_sha256(tmp_path):
    (tmp_path / "file").write_bytes(b"other side")
    assert sha256(tmp_path / "file") == hashlib.sha256(b"other side").hexdigest()


@pytest.mark.parametrize(
    ("prompts", "name", "had"),
    [
        ({}, "query", ["", "Q: ", "P: "]),
        ({"query": "Q: ", "document": ""}, "query", ["Q: "]),
        ({"query": "Q: ", "document": ""}, "document", [""]),
        ({"nq": "Q: ", "other-document": "P: "}, "query", ["Q: ", "P: "]),
        ({"nq": "Q: ", "other-document": "P: "}, "document", ["", "Q: ", "P: "]),
    ],
)
def test_instructions_of_training(prompts, name, had):
    trained = Training("supervised", prompts=prompts)
    assert [used for used in ("", "Q: ", "P: ", "Z: ") if trained.had(name, used)] == (
        had if prompts else [*had, "Z: "]
    )


class TestMerged:
    def test_untouched(self, tmp_path):
        lineage = Lineage("base").extended("mntp", adapter_in(tmp_path / "a"))
        lineage.adapters[0].check()

    def test_changed(self, tmp_path):
        lineage = Lineage("base").extended("mntp", adapter_in(tmp_path / "a"))
        (tmp_path / "a" / ADAPTER_WEIGHTS).write_bytes(b"weightz")
        with pytest.raises(ValueError, match=r"'mntp'.*must have SHA-256.*restore it, or train the stage again"):
            lineage.adapters[0].check()

    def test_missing(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="adapter 'mntp' must be at"):
            Merged("mntp", str(tmp_path), "0").check()


def test_extending_keeps_order_and_the_rest(tmp_path):
    old = Lineage("base", "main", "print")
    new = old.extended("mntp", adapter_in(tmp_path / "a")).extended("simcse", adapter_in(tmp_path / "b", b"more"))
    assert old.adapters == ()
    assert (new.base, new.revision, new.fingerprint) == ("base", "main", "print")
    assert [adapter.name for adapter in new.adapters] == ["mntp", "simcse"]


class TestCard:
    def write(self, folder) -> Card:
        lineage = Lineage("base", None, "print").extended("mntp", adapter_in(folder / "adapters" / "0-mntp"))
        card = Card(lineage, "mntp", 1000, "bidirectional", "mean", 512, "<s>", True, "0" * 64)
        card.write(folder)
        return card

    def test_round_trip(self, tmp_path):
        assert not Card.is_at(tmp_path)
        card = self.write(tmp_path)
        assert Card.is_at(tmp_path)
        assert Card.read(tmp_path) == card

    def test_a_moved_folder_finds_its_adapters(self, tmp_path):
        self.write(tmp_path / "old")
        (tmp_path / "old").rename(tmp_path / "new")
        (adapter,) = Card.read(tmp_path / "new").lineage.adapters
        adapter.check()
        assert adapter.folder == str(tmp_path / "new" / "adapters" / "0-mntp")

    @pytest.mark.parametrize(
        "change", [{"format": 6}, {"lineage": None}, {"pooling": ...}, {"unknown": 1}, {"lineage": {"adapters": [{}]}}]
    )
    def test_a_broken_card(self, tmp_path, change):
        self.write(tmp_path)
        content = {**json.loads((tmp_path / CARD).read_text()), **change}
        content = {key: value for key, value in content.items() if value is not ...}
        (tmp_path / CARD).write_text(json.dumps(content))
        with pytest.raises(ValueError, match=r"encoder.json must describe an encoder"):
            Card.read(tmp_path)

    def test_a_torn_card(self, tmp_path):
        self.write(tmp_path)
        (tmp_path / CARD).write_text((tmp_path / CARD).read_text()[:50])
        with pytest.raises(ValueError, match=r"encoder.json must describe an encoder"):
            Card.read(tmp_path)
