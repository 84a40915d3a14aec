from benchmark.indexing import measure_indexing


def test_both_layouts_are_indexed_completely_and_timed() -> None:
    results = measure_indexing(300, repeats=3)
    assert [result.layout for result in results] == ["market1501", "folders"]
    for result in results:
        assert result.files == 300
        assert 0 < result.median_s <= result.slowest_s
        assert result.files_per_s == 300 / result.median_s
