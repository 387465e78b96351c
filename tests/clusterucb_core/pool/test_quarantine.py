from clusterucb_core.pool.quarantine import DETAIL_CHARS, RAW_BYTES, Reason, bad_row


def test_the_raw_text_is_cut_at_four_kibibytes_of_utf8_whatever_the_bytes() -> None:
    for raw in (b"x" * 5000, b"\xff" * 5000, "é€😀".encode() * 1000):
        text = bad_row(1, Reason.NOT_UTF8, "", raw=raw).raw
        assert RAW_BYTES - 4 < len(text.encode()) <= RAW_BYTES


def test_no_record_holds_what_a_table_cannot() -> None:
    row = bad_row(1, Reason.LONE_SURROGATE, "key \ud800 \x00" + "x" * 9999, raw=b"\x00\xff")
    assert "\x00" not in row.raw + row.detail
    assert len(row.detail.encode()) < 2 * DETAIL_CHARS
