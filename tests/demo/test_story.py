"""The story of the digits, cut short."""

from demo import story


def test_the_masked_and_the_small_model_agree() -> None:
    dense, masked, small, on = story.tell(share=0.005, size=8, passes=1)
    assert masked.accuracy == small.accuracy
    assert small.parameters < 0.06 * dense.parameters == 0.06 * masked.parameters
    assert small.macs < 0.07 * dense.macs
    assert on.parameters == small.parameters
    assert story.table([dense, masked, small, on]).count("\n") == 5
