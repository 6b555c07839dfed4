"""Running moments: by batches as by all rows at once, in half precision, by several threads."""

import torch
from thread_tools import in_threads

from marl.modules.moments import Moments


def test_running_moments_over_unequal_batches_equal_those_of_all_rows_at_once():
    rows = torch.randn(2, 3, 17, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * 4 + 100
    moments = Moments()
    for part in rows.split([1, 5, 11], dim=2):
        moments.update(part)
    torch.testing.assert_close(moments.std(), rows.std(dim=2, correction=0))
    torch.testing.assert_close(moments.mean, rows.mean(dim=2))


def test_moments_of_half_precision_numbers_do_not_overflow():
    """1000 squared is more than the largest number in half precision, 65504."""
    states = torch.tensor([-1000.0, 1000.0], dtype=torch.half).view(1, 1, 2, 1)
    moments = Moments()
    moments.update(states)
    assert moments.std().item() == 1000.0


def test_moments_that_threads_update_together_stay_of_one_piece():
    """Each batch has mean 0 and deviation 1, so whatever part of them counted, so has the whole."""
    batch, moments = torch.tensor([-1.0, 1.0]).view(1, 1, 2, 1), Moments()
    in_threads(lambda: [moments.update(batch) for _ in range(300)], 4)
    assert (moments.mean.item(), moments.std().item()) == (0.0, 1.0)


def test_rows_that_do_not_count_change_no_moment():
    """Agent 0 sees 1, 3 and then 5, among rows of 99 that do not count; agent 1 nothing at first, then 7 and 9."""
    moments = Moments()

    def see(rows: list[list[float]], real: list[list[int]] | None) -> None:
        mask = None if real is None else torch.tensor([real]).bool()
        moments.update(torch.tensor(rows, dtype=torch.float64).view(1, 2, -1, 1), mask)

    def expect(count: int, means: list[float], variances: list[float]) -> None:
        assert moments.count == count
        torch.testing.assert_close(moments.mean.flatten(), torch.tensor(means, dtype=torch.float64))
        torch.testing.assert_close(moments.std().square().flatten(), torch.tensor(variances, dtype=torch.float64))

    see([[1, 99, 3], [99, 99, 99]], [[1, 0, 1], [0, 0, 0]])
    expect(2, [2, 0], [1, 0])
    see([[5, 99], [7, 9]], [[1, 0], [1, 1]])
    expect(3, [3, 8], [8 / 3, 1])  # of 1, 3, 5 and of 7, 9
    see([[3], [8]], None)
    expect(4, [3, 8], [2, 2 / 3])  # of 1, 3, 5, 3 and of 7, 9, 8


def test_masked_counts_are_as_exact_as_others_after_many_rows():
    """The usual bug: whole numbers divided in single precision, so that after 10^9 rows a new batch weighs nothing."""
    masked, plain = Moments(), Moments()
    nothing = torch.zeros(1, 1, 1, dtype=torch.float64)
    masked.known = plain.known = (10**9, nothing, nothing)
    for _ in range(100):
        masked.update(torch.ones(1, 1, 100, 1), torch.ones(1, 1, 100, dtype=torch.bool))
        plain.update(torch.ones(1, 1, 100, 1))
    torch.testing.assert_close(masked.mean, plain.mean, rtol=1e-9, atol=0)  # 10^4 ones among 10^9 zeros: 1e-5
