"""Notebook 04's exercises: their stubs and wrong answers, and what else must hold of them."""

import pytest

from recnb import llara, metrics
from recnb.exercises.nb04 import EXERCISES
from recnb.lessons import exercise


def stub_resetting_share(step, total, epochs=5):
    """Share of hybrid micro-batches when the step counter starts anew in each epoch, but is divided by all steps."""
    ...


def stub_published_rule(answer, titles):
    """Place of the one title that occurs within the answer, letter case aside; -1 when none or several do."""
    ...


def stub_wilson_interval(hits, n, z=1.96):
    """Wilson's interval of the share hits / n: its lower and its upper end."""
    ...


STUBS = {
    "resetting_share": stub_resetting_share,
    "published_rule": stub_published_rule,
    "wilson_interval": stub_wilson_interval,
}


def within(answer, titles, several=-1, lower=True):
    said = answer.lower() if lower else answer
    found = [place for place, title in enumerate(titles) if (title.lower() if lower else title) in said]
    return found[0] if len(found) == 1 else several if found else -1


def first_found(answer, titles):
    return next((place for place, title in enumerate(titles) if title.lower() in answer.lower()), -1)


def exact(answer, titles):
    lowered = [title.lower() for title in titles]
    return lowered.index(answer.lower()) if answer.lower() in lowered else -1


def turned(answer, titles):
    found = [place for place, title in enumerate(titles) if answer.lower() in title.lower()]
    return found[0] if len(found) == 1 else exact(answer, titles) if exact(answer, titles) >= 0 else within(
        answer, titles
    )  # fmt: skip


def textbook(hits, n, z=1.96):
    share = hits / n
    reach = z * (share * (1 - share) / n) ** 0.5
    return share - reach, share + reach


def unshifted(hits, n, z=1.96):
    low, high = EXERCISES["wilson_interval"].solution(hits, n, z)
    return hits / n - (high - low) / 2, hits / n + (high - low) / 2


WRONG = [
    ("resetting_share", lambda step, total, epochs=5: step / total, "never starts anew"),
    ("resetting_share", lambda step, total, epochs=5: step % (total // epochs) / (total // epochs), "climbs to 1"),
    ("resetting_share", lambda step, total, epochs=5: 1 - step % (total // epochs) / total, "upside down"),
    ("resetting_share", lambda step, total, epochs=5: step % (total // 5) / total, "five epochs only"),
    ("resetting_share", lambda step, total, epochs=5: 0.1, "at step 0 of 100"),
    ("published_rule", first_found, "not the first of them"),
    ("published_rule", exact, "anywhere within the answer"),
    ("published_rule", turned, "not the answer in the title"),
    ("published_rule", lambda answer, titles: within(answer, titles, lower=False), "letter case"),
    ("published_rule", lambda answer, titles: answer in titles, "a whole number"),
    ("wilson_interval", textbook, "too sure of itself"),
    ("wilson_interval", unshifted, "pulled towards one half"),
    ("wilson_interval", lambda hits, n, z=1.96: hits / n, "two numbers"),
    ("wilson_interval", lambda hits, n, z=1.96: EXERCISES["wilson_interval"].solution(hits, n)[::-1], "wrong order"),
    ("wilson_interval", lambda hits, n, z=1.96: EXERCISES["wilson_interval"].solution(hits, n, 1.0), "expected ("),
]


def test_a_raising_answer_is_a_message(capsys):
    assert exercise("04.wilson_interval", lambda hits: 1.0) is EXERCISES["wilson_interval"].solution
    assert "it raised TypeError" in capsys.readouterr().out


def test_solutions_agree_with_the_package():
    """What a reader writes is what the package computes."""
    for step in range(100):
        ours = EXERCISES["resetting_share"].solution(step, 100)
        assert ours == pytest.approx(llara.hybrid_share("resetting", step / 100), abs=1e-9) or step % 20 == 0
    got = metrics.wilson(43, 95)
    assert EXERCISES["wilson_interval"].solution(43, 95) == pytest.approx((got.low, got.high), abs=1e-4)
    titles = ["Alien", "Ran", "Grand Hotel"]
    for said in ("alien", "Grand Hotel", "see Ran", "nothing"):
        assert EXERCISES["published_rule"].solution(said, titles) == metrics.chosen(said, titles, exact=False)
