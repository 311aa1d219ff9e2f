"""What findings say in words."""

from experiments.report.findings import Finding
from experiments.report.sentences import answers_table, describe, tell_detectable

ACCURACY = "Test accuracy against the baseline"
LOSS = "Training loss over all epochs against the baseline"
FALLS = "The deviation falls, from epoch 2 on"


def finding(label, effect, verdict, question=ACCURACY, **changes):
    return Finding("a claim", "", "", None, verdict, effect=effect, label=label, question=question, **changes)


def test_few_are_named_with_their_settings_and_many_are_counted():
    some = [finding("ZNorm", 8.9, "helps", group="digits, shared, SGDM")]
    some += [finding("ZNorm", -1.0, "harms", group="digits, tuned, SGDM")]
    some += [finding("GAN", 0.1, "cannot be told", group=f"digits, tuned, {n}") for n in "abc"]
    assert describe(some) == (
        "For test accuracy against the baseline, ZNorm (shared, SGDM, +8.9) helps; "
        "ZNorm (tuned, SGDM, -1.0) harms; the other 3 cannot be told."
    )
    some += [finding("GAN", 2.0, "helps", group=f"digits, tuned, {n}") for n in "defg"]
    assert "5 of 9 comparisons help; ZNorm" in describe(some)
    (first, second, third) = answers_table(some).splitlines()[2:]
    assert [cell.strip() for cell in first.split("|")[1:-1]] == [
        ACCURACY,
        "**helps**",
        "5 of 9",
        "ZNorm, shared, SGDM +8.9; " + "; ".join(f"GAN, tuned, {n} +2.0" for n in "defg"),
    ]
    assert second.split("|")[1].isspace()
    assert "3 of 9" in third


def test_where_all_are_the_same_nothing_is_repeated():
    untold = [finding(label, 1.0, "cannot be told") for label in ("ZNorm", "GAN")]
    assert describe(untold).endswith(", nothing can be told of ZNorm and GAN.")
    same = [finding(label, 0.1, "no difference that counts") for label in ("ZNorm", "GAN")]
    assert describe(same).endswith(", none of the 2 makes a difference that counts.")
    assert describe(same[:1]).endswith(", ZNorm (+0.1) makes no difference that counts.")
    assert describe([]).startswith("Nothing can be said yet")


def test_the_second_sentence_is_of_a_comparison_that_is_decided():
    some = [
        finding("ZNorm", 1.0, "cannot be told"),
        finding("ZNorm", 0.9, "contradicted", question=FALLS),
        finding("ZNorm", 0.9, "no difference that counts", question="Roughness against the baseline"),
        finding("ZNorm", 0.9, "helps", question=LOSS, unit="ratio", other_rate=True),
    ]
    words = describe(some)
    assert words.endswith(
        "For training loss over all epochs against the baseline, ZNorm (x 0.90) helps (at another learning rate)."
    )
    assert "Roughness" not in words
    assert "That the deviation falls, from epoch 2 on, is contradicted." in describe(some[:2])


def test_a_claim_is_a_clause_and_a_list_of_claims_is_counted():
    some = [finding(f"A, {n}", 1.0, "shown", question=FALLS) for n in "ab"]
    some += [finding("B", 2.0, "contradicted", question=FALLS)]
    some += [finding("C", 2.0, "cannot be told", question=FALLS) for _ in range(3)]
    assert describe(some) == (
        "That the deviation falls, from epoch 2 on, is shown for A (a, +1.0; b, +1.0), contradicted for B (+2.0) "
        "and cannot be told for the other 3."
    )
    several = [finding(str(n), None, "shown", question="Beyond the paper") for n in range(5)]
    several.append(finding("figure 5", None, "contradicted", question="Beyond the paper"))
    assert describe(several) == "Beyond the paper: 5 of 6 are shown and 1 is contradicted (figure 5)."
    assert describe(some[:2] * 3) == "That the deviation falls, from epoch 2 on, is shown in all 6 cases."


def test_a_protocols_words_are_kept():
    some = [
        finding("ZNorm", 5.0, "shown"),
        finding("GAN", -5.0, "harm shown"),
        finding("C", 0.1, "too small to count"),
    ]
    assert describe(some) == (
        "For test accuracy against the baseline, a gain is shown for ZNorm (+5.0); harm is shown for GAN (-5.0); "
        "C (+0.1) is too small to count."
    )


def test_the_smallest_detectable_difference_is_that_of_the_first_question():
    some = [finding("ZNorm", 1.0, "helps", unit="points", detectable=size) for size in (0.4, 14.0)]
    some.append(finding("ZNorm", 1.0, "helps", question=LOSS, unit="ratio", detectable=80.0))
    assert tell_detectable(some) == "The smallest detectable difference was 0.4 to 14 points."
    assert tell_detectable(some[2:]) == "The smallest detectable difference was 80 %."
    assert tell_detectable([finding("ZNorm", 1.0, "shown", question=FALLS), *some]) == ""
    assert tell_detectable([]) == ""
