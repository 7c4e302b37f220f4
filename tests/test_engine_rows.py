"""The rows of a step's logits belong to requests, as vLLM lays them out."""

from otterlm.engines.vllm.rows import rows_of


def test_a_request_has_a_row_for_each_draft_and_one_more() -> None:
    # vLLM's own example, see `GPUModelRunner._calc_spec_decode_metadata`.
    rows = rows_of([3, 0, 2, 0, 1])
    assert [[*each] for each in rows] == [[0, 1, 2, 3], [4], [5, 6, 7], [8], [9, 10]]
    verifying = [row for each in rows for row in each[:-1]]
    assert verifying == [0, 1, 2, 5, 6, 9]
    assert [row - request for request, each in enumerate(rows) for row in each[:-1]] == [*range(6)]
    assert [each[-1] for each in rows] == [3, 4, 7, 8, 10]
    assert rows_of([]) == []
