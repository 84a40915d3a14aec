"""Is a name safe as URI segment, folder and label, and a principal what its URI says alone?"""

import pytest
from hypothesis import given
from hypothesis import strategies as some

from fedreid.errors import NameRefused
from fedreid.names import (
    FederationName,
    Principal,
    Role,
    check_label,
    federation_name,
    is_digest,
    parse_principal,
    silo_name,
)

labels = some.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)
roles = some.sampled_from(Role)


@pytest.mark.parametrize("text", ["a", "0", "station-north", "a--b", "1-2", "x" * 63])
def test_a_dns_label_is_a_name(text: str) -> None:
    assert silo_name(text) == text
    assert federation_name(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-a",
        "a-",
        "-",
        "A",
        "a_b",
        "a.b",
        "a/b",
        "..",
        "a b",
        "a\n",
        "\na",
        "a\0",
        "ä",
        "ａ",  # full width
        "x" * 64,
    ],
)
def test_anything_else_is_refused_and_quoted(text: str) -> None:
    with pytest.raises(NameRefused) as refused:
        check_label(text, what="silo name")
    assert repr(text) in str(refused.value)


@given(some.text(max_size=70))
def test_whatever_is_a_name_is_one_folder_and_one_label(text: str) -> None:
    try:
        check_label(text, what="name")
    except NameRefused:
        return
    assert text.isascii()
    assert text == text.lower()
    assert "/" not in text
    assert "." not in text
    assert 1 <= len(text) <= 63


@given(labels, roles, labels)
def test_a_principal_is_what_its_uri_says(federation: str, role: Role, name: str) -> None:
    principal = Principal(federation=FederationName(federation), role=role, name=name)
    assert parse_principal(principal.uri) == principal


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "harbour/silo/north",
        "spiffe:/harbour/silo/north",
        "SPIFFE://harbour/silo/north",
        "https://harbour/silo/north",
        "spiffe://harbour/silo",
        "spiffe://harbour/silo/north/",
        "spiffe://harbour/silo/north/x",
        "spiffe://harbour//north",
        "spiffe:///silo/north",
        "spiffe://harbour/silo/",
        "spiffe://harbour/root/north",
        "spiffe://harbour/SILO/north",
        "spiffe://harbour/silo/North",
        "spiffe://harbour:443/silo/north",
        "spiffe://x@harbour/silo/north",
        "spiffe://harbour/silo/north?x",
        "spiffe://harbour/silo/north#x",
        "spiffe://harbour/silo/north%2f",
        "spiffe://harbour/silo/north\n",
        " spiffe://harbour/silo/north",
        "spiffe://spiffe://silo/north",
    ],
)
def test_any_other_uri_names_nobody(uri: str) -> None:
    assert parse_principal(uri) is None


@given(some.text(max_size=100))
def test_no_text_breaks_the_parser_and_none_names_a_party_ambiguously(text: str) -> None:
    principal = parse_principal(text)
    assert principal is None or principal.uri == text


def test_only_silos_and_silos_to_be_have_a_silo_name() -> None:
    federation = FederationName("harbour")
    for role in (Role.SILO, Role.BOOTSTRAP):
        assert Principal(federation=federation, role=role, name="north").silo == "north"
    for role in (Role.ADMIN, Role.COORDINATOR):
        with pytest.raises(AssertionError):
            _ = Principal(federation=federation, role=role, name="north").silo


def test_a_digest_is_64_lower_case_hexadecimal_digits() -> None:
    assert is_digest("0123456789abcdef" * 4)
    for text in ("", "0" * 63, "0" * 65, "g" * 64, "A" * 64, "0" * 63 + "\n", "٠" * 64):
        assert not is_digest(text)
