"""Names -> pairs: which image is A, which is B, and which split they belong to."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from p2p.doctor.files import BadRow
from p2p.errors import ConfigError, UsageError
from p2p.preparation.locations import Drawing, Location
from p2p.preparation.sources import Listing, Member

_SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_KNOWN_SIDES = (("a", "b"), ("labels", "photos"), ("labels", "images"), ("masks", "images"), ("input", "target"))
_SPLIT_AND_SIDE = re.compile(r"(train|val|valid|validation|test)[_-]?([ab])", re.IGNORECASE)
_NO_SPLIT = ""  # the split of an image outside any split folder, before the fraction decides


@dataclass(frozen=True)
class PairRef:
    """A pair by name: where its sides lie (b None: a holds both, side by side), and its size in memory, bytes."""

    pair_id: str
    split: str
    a: Location
    b: Location | None
    weight: int

    @property
    def files(self) -> list[Location]:
        """Where its encoded images lie, one or two of them; none for a drawing."""
        return [where for where in (self.a, self.b) if where is not None and not isinstance(where, Drawing)]


@dataclass
class Pairing:
    """The pairs found, what became no pair, and how the names were understood."""

    bad: list[BadRow] = field(default_factory=list)
    layout: Literal["combined", "folders"] = "combined"
    note: str = ""
    _found: dict[tuple[str, str], PairRef] = field(default_factory=dict)

    @property
    def pairs(self) -> list[PairRef]:
        """In the order in which they were added."""
        return list(self._found.values())

    def add(self, pair: PairRef) -> None:
        """Add a pair; another of the same split and id is a bad row."""
        if self._found.setdefault((pair.split, pair.pair_id), pair) is not pair:
            self.bad.append(_duplicate(pair.pair_id, pair.a))


@dataclass(frozen=True)
class _NamedMember:
    """A member with its path parsed: split folder, the folders that remain, and the name without its ending."""

    split: str
    folders: tuple[str, ...]
    stem: str
    member: Member

    @property
    def pair_id(self) -> str:
        return "/".join((*self.folders, self.stem))


def goes_to_val(pair_id: str, fraction: float) -> bool:
    """Whether the pair belongs to that share, 0..1, of all ids that is held out; the same in every run."""
    digest = hashlib.sha256(pair_id.encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def split_name(folder: str) -> str | None:
    """The split that a folder of that name is, if any."""
    return _SPLIT_NAMES.get(folder.lower())


def choose_split(split: str, pair_id: str, val_fraction: float) -> str:
    """`split` if a folder named it, else val or train by the fraction."""
    return split or ("val" if goes_to_val(pair_id, val_fraction) else "train")


def _parse_path(member: Member, depth: int) -> _NamedMember:
    """Find the split folder among the first `depth` folders of the member's path."""
    *folders, name = member.path.split("/")
    taken = _SPLIT_AND_SIDE.fullmatch(folders[0]) if folders and depth > 1 else None
    if taken:
        folders[:1] = [taken[1], taken[2]]
    stem = name.rpartition(".")[0]
    for place, folder in enumerate(folders[:depth]):
        split = split_name(folder)
        if split:
            return _NamedMember(split, (*folders[:place], *folders[place + 1 :]), stem, member)
    return _NamedMember(_NO_SPLIT, tuple(folders), stem, member)


def _without_top_folder(members: Sequence[Member]) -> list[Member]:
    """Archives often wrap everything in one folder; remove it, unless its name means a split or a side."""
    meaningful = {*_SPLIT_NAMES, *(name for sides in _KNOWN_SIDES for name in sides)}
    current = list(members)
    while True:
        top = current[0].path.partition("/")[0]
        wrapped = all(member.path.startswith(f"{top}/") for member in current)
        if not wrapped or top.lower() in meaningful or _SPLIT_AND_SIDE.fullmatch(top):
            return current
        current = [Member(member.path[len(top) + 1 :], member.location, member.size) for member in current]


def _find_sides(named: Iterable[_NamedMember], asked: bool) -> tuple[str, str] | None:
    """The names of the two folders that hold side A and side B, if the names (or the user) say that there are two."""
    tops = sorted({item.folders[0] for item in named if item.folders})
    by_lower = {top.lower(): top for top in tops}
    for a, b in _KNOWN_SIDES:
        if a in by_lower and b in by_lower:
            return by_lower[a], by_lower[b]
    return (tops[0], tops[1]) if asked and len(tops) == 2 else None


def pair_one_source(listing: Listing, layout: str, val_fraction: float, is_archive: bool) -> Pairing:
    """Pair what lies at one address: combined images, or two folders below it. Raises ConfigError if nothing pairs."""
    members = _without_top_folder(listing.members) if is_archive else listing.members
    if layout in ("auto", "folders"):
        named = [_parse_path(member, 2) for member in members]
        sides = _find_sides(named, asked=layout == "folders")
        if sides:
            halves = [
                [_NamedMember(i.split, i.folders[1:], i.stem, i.member) for i in named if i.folders[:1] == (side,)]
                for side in sides
            ]
            note = f"A is {sides[0]}/, B is {sides[1]}/"
            pairing = Pairing(bad=list(listing.bad), layout="folders", note=note)
            return _join(halves[0], halves[1], (f"{sides[0]}/", f"{sides[1]}/"), val_fraction, pairing)
        if layout == "folders":
            tops = sorted({f"{item.folders[0]}/" for item in named if item.folders})
            raise ConfigError(
                "layout",
                f"folders: {listing.uri} must hold two sub-folders of images, such as A/ and B/; found "
                f"{', '.join(tops[:6]) or 'none'}; or name side B's folder with --source-b",
            )
    pairing = Pairing(bad=list(listing.bad), note="A is the left half, B the right half")
    for item in (_parse_path(member, 1) for member in members):
        split = choose_split(item.split, item.pair_id, val_fraction)
        pairing.add(PairRef(item.pair_id, split, item.member.location, None, item.member.size))
    return pairing


def pair_two_sources(a: Listing, b: Listing, archives: tuple[bool, bool], val_fraction: float) -> Pairing:
    """Pair the images of two addresses by relative path without extension. Raises ConfigError if nothing pairs."""
    sides = []
    for listing, is_archive in zip((a, b), archives, strict=True):
        members = _without_top_folder(listing.members) if is_archive else listing.members
        sides.append([_parse_path(member, 1) for member in members])
    pairing = Pairing(bad=[*a.bad, *b.bad], layout="folders", note="A is --source, B is --source-b")
    return _join(sides[0], sides[1], (a.uri, b.uri), val_fraction, pairing)


def _duplicate(pair_id: str, where: Location) -> BadRow:
    message = f"pair {pair_id!r} is there more than once; give each file or row a name of its own, or remove one"
    return BadRow(where.uri, "DuplicateName", message)


def _by_key(items: Iterable[_NamedMember], bad: list[BadRow]) -> dict[tuple[str, str], _NamedMember]:
    found: dict[tuple[str, str], _NamedMember] = {}
    for item in items:
        if found.setdefault((item.split, item.pair_id), item) is not item:
            bad.append(_duplicate(item.pair_id, item.member.location))
    return found


def _join(
    side_a: list[_NamedMember],
    side_b: list[_NamedMember],
    names: tuple[str, str],
    val_fraction: float,
    pairing: Pairing,
) -> Pairing:
    """Add to `pairing` what the two sides have in common, and to its bad rows what only one has."""
    found_a, found_b = _by_key(side_a, pairing.bad), _by_key(side_b, pairing.bad)
    for key, item in found_a.items():
        partner = found_b.get(key)
        if partner is None:
            pairing.bad.append(_unmatched(item, "b", names[1]))
            continue
        split = choose_split(item.split, item.pair_id, val_fraction)
        weight = item.member.size + partner.member.size
        pairing.add(PairRef(item.pair_id, split, item.member.location, partner.member.location, weight))
    pairing.bad += [_unmatched(item, "a", names[0]) for key, item in found_b.items() if key not in found_a]
    if not pairing.pairs:
        first = [next(iter(items)).member.path if items else "(no image)" for items in (side_a, side_b)]
        raise UsageError(
            f"0 of {len(side_a)} names in {names[0]} have a partner in {names[1]}; names are compared by relative path "
            f"without extension; first A: {first[0]}, first B: {first[1]}"
        )
    return pairing


def _unmatched(item: _NamedMember, missing: str, where: str) -> BadRow:
    message = f"pair {item.pair_id!r} has no {missing}: {where} holds no image of that name"
    return BadRow(item.member.location.uri, "Unmatched", message)
