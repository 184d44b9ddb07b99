"""Exercises of notebook 04: the counter that starts anew, which title an answer names, and Wilson's interval."""

from __future__ import annotations

from collections.abc import Callable

from recnb.lessons import Exercise


def resetting_share(step: int, total: int, epochs: int = 5) -> float:
    """Share of hybrid micro-batches when the step counter starts anew in each epoch, but is divided by all steps."""
    return step % (total // epochs) / total


def check_resetting_share(answer: Callable[..., float]) -> str | None:
    """Compare on a hundred steps in five epochs and on sixty in three, with a table made by counting."""
    for total, epochs in ((100, 5), (60, 3)):
        expected, counter = [], 0
        for step in range(total):
            counter = 0 if step % (total // epochs) == 0 else counter + 1
            expected.append(counter / total)
        got = [float(answer(step, total, epochs)) for step in range(total)]
        if max(abs(a - b) for a, b in zip(got, expected, strict=True)) < 1e-9:
            continue
        mistakes = {
            "the counter never starts anew: this is the paper's formula": [step / total for step in range(total)],
            "it climbs to 1 in each epoch: divide by all steps, not by those of one epoch": [
                share * epochs for share in expected
            ],
            "it is upside down: the share should rise within an epoch": [1 - share for share in expected],
        }
        for message, values in mistakes.items():
            if max(abs(a - b) for a, b in zip(got, values, strict=True)) < 1e-9:
                return message
        if epochs == 3:
            return "it is right for five epochs only: use the argument epochs"
        where = next(step for step in range(total) if abs(got[step] - expected[step]) > 1e-9)
        return f"at step {where} of {total} in {epochs} epochs expected {expected[where]:.3f}, got {got[where]:.3f}"
    return None


def published_rule(answer: str, titles: list[str]) -> int:
    """Place of the one title that occurs within the answer, letter case aside; -1 when none or several do."""
    said = answer.lower().strip()
    found = [place for place, title in enumerate(titles) if title.lower().strip() in said]
    return found[0] if len(found) == 1 else -1


def check_published_rule(answer: Callable[[str, list[str]], int]) -> str | None:
    """Ask for one plain case and for each of the rule's corners."""
    titles = ["Alien", "Ran", "Grand Hotel", "Heat"]
    trials = [
        ("Heat", 3, "a title alone should be found"),
        ("heat", 3, "letter case should not matter"),
        ("I would watch Alien next", 0, "the title may stand anywhere within the answer"),
        ("Al", -1, "the title must be in the answer, not the answer in the title"),
        ("Casablanca", -1, "an answer that names no candidate gives -1"),
        ("Alien or Heat", -1, "two titles in one answer give -1, not the first of them"),
        ("Grand Hotel", -1, "'Ran' is part of 'Grand Hotel': two titles are found, so even a right answer is lost"),
    ]
    for said, expected, message in trials:
        got = answer(said, list(titles))
        if got is True or got is False or got is None:
            return f"expected the place of a title, a whole number, got {got}"
        if int(got) != expected:
            return f"{message} (asked for {said!r} among {titles}: expected {expected}, got {got})"
    return None


def wilson_interval(hits: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of the share hits / n: its lower and its upper end."""
    share = hits / n
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    reach = z / (1 + z**2 / n) * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5
    return middle - reach, middle + reach


def check_wilson_interval(answer: Callable[..., tuple[float, float]]) -> str | None:
    """Hold both ends against the definition: the shares p whose distance from hits / n is z standard errors of p."""
    for hits, n in ((43, 95), (2, 10), (0, 6)):
        got = answer(hits, n)
        if not isinstance(got, tuple | list) or len(got) != 2:
            return f"expected two numbers, low and high, got {got}"
        low, high = (float(end) for end in got)
        share, z = hits / n, 1.96
        flat = z * (share * (1 - share) / n) ** 0.5
        if all(abs((share - p) ** 2 - z**2 * p * (1 - p) / n) < 1e-6 for p in (low, high)) and low < high:
            continue
        if abs(low - share + flat) < 1e-6 and abs(high - share - flat) < 1e-6:
            return f"that is the textbook p ± z sqrt(p(1-p)/n): for {hits} of {n} it is too sure of itself near 0 and 1"
        if abs(low + high - 2 * share) < 1e-6:
            return "the middle is hits / n: Wilson's is pulled towards one half"
        if low > high:
            return "the ends are in the wrong order: low first"
        return f"for {hits} of {n} expected {wilson_interval(hits, n)}, got {(low, high)}"
    return None


EXERCISES = {
    "resetting_share": Exercise(
        resetting_share, check_resetting_share, "one misplaced counter, and nine batches in ten are text"
    ),
    "published_rule": Exercise(published_rule, check_published_rule, "a right answer can be lost, and you know how"),
    "wilson_interval": Exercise(
        wilson_interval, check_wilson_interval, "you can now read a table of ninety-five people with due doubt"
    ),
}
