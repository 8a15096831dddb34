"""Listings -> pairs: what is found in the names of images, with where their bytes are and what became no pair."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from p2p.data.joining import MAX_SHOWN, FoundLayout, Match, describe_left_out, match_patterns
from p2p.data.matching import LayoutChoice, Unclear, match_names, match_two_sources
from p2p.data.pairs import SPLITS
from p2p.doctor.evidence import no_pairs
from p2p.doctor.files import BadRow
from p2p.errors import ConfigError, UsageError
from p2p.preparation.locations import Drawing, Location
from p2p.preparation.sources import Listing, Member

Patterns = tuple[str, str] | None
_BETWEEN_FOLDERS = re.compile(r"[/#]+(?:\./+)*")  # `/data/#A/1.png` is refused, of a folder; `x.tar#./A/1.png`


@dataclass(frozen=True)
class PairRef:
    """A pair by name: where its sides lie (b None: a holds both, side by side), and its size in memory, bytes."""

    pair_id: str
    split: str
    a: Location
    b: Location | None
    weight: int
    shape: float = 0.0
    """Of a combined pair that was recognised: width over height of a side of most; 0 if it need not have that."""

    @property
    def files(self) -> list[Location]:
        """Where its encoded images lie, one or two of them; none for a drawing."""
        return [where for where in (self.a, self.b) if where is not None and not isinstance(where, Drawing)]


@dataclass
class Pairing:
    """The pairs found, what became no pair, and what was recognised."""

    layout: FoundLayout
    bad: list[BadRow] = field(default_factory=list)
    left_out: str = ""
    """Which images are neither A nor B, for people."""
    unsplit: str = ""
    """Which pairs lie beside those of train/ in no split, for people."""
    _found: dict[tuple[str, str], PairRef] = field(default_factory=dict)

    @property
    def pairs(self) -> list[PairRef]:
        """In the order in which they were added."""
        return list(self._found.values())

    def counts(self) -> dict[str, int]:
        """The number of pairs in each split."""
        counts = Counter(pair.split for pair in self._found.values())
        return {split: counts[split] for split in SPLITS}

    def expect_shape(self, shape: float) -> None:
        """Let each pair have that shape, or look like a pair."""
        self._found = {key: replace(pair, shape=shape) for key, pair in self._found.items()}

    def add(self, pair: PairRef) -> None:
        """Add a pair; another of the same split and id is a bad row."""
        if self._found.setdefault((pair.split, pair.pair_id), pair) is not pair:
            self.bad.append(_repeated(pair.pair_id, pair.a))


def goes_to_val(pair_id: str, fraction: float) -> bool:
    """Whether the pair belongs to that share, 0..1, of all ids that is held out; the same in every run."""
    digest = hashlib.sha256(pair_id.encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def choose_split(split: str, pair_id: str, val_fraction: float) -> str:
    """`split` if a folder named it, else val or train by the fraction."""
    return split or ("val" if goes_to_val(pair_id, val_fraction) else "train")


def pair_one_source(
    listing: Listing,
    layout: LayoutChoice,
    val_fraction: float,
    *,
    patterns: Patterns = None,
    label_kind: str = "",
    is_archive: bool = False,
) -> list[Pairing]:
    """Pair what lies at one address: by the user's patterns, by a layout, or each image with both sides in it.

    More than one pairing are what the names may mean, the likeliest first. Raises UsageError if nothing pairs.
    """
    paths = [member.path for member in listing.members]
    if patterns:
        match = match_patterns(paths, patterns)
        _require_hits(match, paths, patterns)
        found = [match]
    else:
        matched = match_names(paths, layout, label_kind=label_kind, unwrap=is_archive)
        if label_kind and (isinstance(matched, Unclear) or matched[0].layout.name != "Cityscapes"):
            problem = f"no images …_gtFine_{label_kind} beside …_leftImg8bit, so this is no Cityscapes with such labels"
            raise ConfigError("label_kind", f"{label_kind}: {listing.uri} holds {problem}")
        if isinstance(matched, Unclear):
            raise no_pairs("source", listing.uri, len(paths), matched)
        found = matched
    return [_locate(match, listing.members, listing.bad, val_fraction) for match in found]


def pair_two_sources(
    a: Listing, b: Listing, val_fraction: float, patterns: Patterns = None, *, label_kind: str = ""
) -> Pairing:
    """Pair the images of two addresses by relative path without extension, or by a layout that both make up.

    Raises UsageError if nothing pairs.
    """
    paths = [member.path for member in a.members], [member.path for member in b.members]
    match = match_two_sources(paths, ("--source", "--source-b"), patterns, label_kind=label_kind)
    if patterns:
        _require_hits(match, [*paths[0], *paths[1]], patterns)
    _require_common(match, paths, (a.uri, b.uri))
    return _locate(match, [*a.members, *b.members], [*a.bad, *b.bad], val_fraction)


def _locate(match: Match, members: Sequence[Member], bad: Sequence[BadRow], val_fraction: float) -> Pairing:
    pairing = Pairing(match.layout, list(bad), describe_left_out([members[number].path for number in match.left_out]))
    if any(pair.split == "train" for pair in match.pairs):
        pairing.unsplit = _describe_places([members[pair.a].path for pair in match.pairs if not pair.split])
    pairing.bad += [_repeated(pair_id, members[number].location) for number, pair_id in match.repeated]
    refused = {_without_ending(row.source_uri) for row in bad}
    partners: dict[tuple[str, str], set[str]] = {}  # (a side that is missing, folder of the other) -> folders of it
    for pair in match.pairs if refused else ():
        of_a, of_b = (_folder_of_side(members[number or 0].location.uri, pair.pair_id) for number in (pair.a, pair.b))
        partners.setdefault(("b", of_a), set()).add(of_b)
        partners.setdefault(("a", of_b), set()).add(of_a)
    for number, pair_id, missing in match.unmatched:
        side = match.layout.sides["ab".index(missing)]
        message = f"pair {pair_id!r} has no {missing}: {side} holds no image of that name"
        uri = members[number].location.uri
        above, slash, name = pair_id.rpartition("/")
        names = [f"{above}{slash}{one}" for one in (name, _without_ending(uri).rpartition("/")[2])]
        folders = partners.get((missing, _folder_of_side(uri, pair_id)), ())
        if any(f"{folder}/{name}" in refused for folder in folders for name in names):
            message += " but one that is refused, as another row says"
        pairing.bad.append(BadRow(uri, "Unmatched", message))
    for pair in match.pairs:
        a, b = members[pair.a], None if pair.b is None else members[pair.b]
        split = choose_split(pair.split, pair.pair_id, val_fraction)
        weight = a.size + (b.size if b else 0)
        pairing.add(PairRef(pair.pair_id, split, a.location, b.location if b else None, weight))
    return pairing


def _without_ending(uri: str) -> str:
    """An address without the ending of its file's name; of a file in a folder or in an archive alike."""
    folder, slash, name = _BETWEEN_FOLDERS.sub("/", uri).rpartition("/")
    return folder + slash + (name.rpartition(".")[0] or name)


def _folder_of_side(uri: str, pair_id: str) -> str:
    """The folder of an image, without those that are a part of the name of its pair."""
    above, slash, _ = pair_id.rpartition("/")
    return _without_ending(uri).rpartition("/")[0].removesuffix(f"{slash}{above}")


def _describe_places(paths: Sequence[str]) -> str:
    """`gallery/A/ (8), banner.png`: by folder, the largest first."""
    places = Counter(f"{path.rpartition('/')[0]}/" if "/" in path else path for path in paths)
    shown = [f"{place} ({count})" if place.endswith("/") else place for place, count in places.most_common(MAX_SHOWN)]
    return ", ".join(shown + ["…"] * (len(places) > MAX_SHOWN))


def _require_common(match: Match, sides: tuple[Sequence[str], Sequence[str]], names: tuple[str, str]) -> None:
    """Raise UsageError if no name is on both sides."""
    if match.pairs:
        return
    first = [side[0] if side else "(no image)" for side in sides]
    raise UsageError(
        f"0 of {len(sides[0])} names in {names[0]} have a partner among {len(sides[1])} in {names[1]}; names are "
        f"compared by relative path without extension; first A: {first[0]}, first B: {first[1]}; --pattern-a "
        f"'{{id}}_x.png' and --pattern-b '{{id}}_y.jpg' say which part of them both sides have in common"
    )


def _require_hits(match: Match, paths: Sequence[str], patterns: tuple[str, str]) -> None:
    """Raise UsageError if the patterns pair nothing up."""
    if match.pairs:
        return
    hits = [sum(missing == other for _, _, missing in match.unmatched) for other in ("b", "a")]
    raise UsageError(
        f"--pattern-a {patterns[0]} fits {hits[0]} of {len(paths)} images, --pattern-b {patterns[1]} fits {hits[1]}, "
        f"and no two of them have one {{id}}; the first images: {', '.join(paths[:3])}"
    )


def _repeated(pair_id: str, where: Location) -> BadRow:
    message = f"pair {pair_id!r} is there more than once; give each file or row a name of its own, or remove one"
    return BadRow(where.uri, "DuplicateName", message)
