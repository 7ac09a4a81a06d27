"""cleaning/prices.py: amounts as tables write them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketplace.cleaning.prices import POUNDS, OtherCurrency, PriceFormat, before_amounts, count_signs, named_amounts


@pytest.mark.parametrize(
    ("text", "pounds"),
    [
        ("£1,234.56", 1234.56),
        ("£ 20", 20.0),
        ("1234.5", 1234.5),
        ("GBP 20", 20.0),
        ("20.00 GBP", 20.0),
        ("\u00c2£20.00", 20.0),
        ("£0.00", 0.0),
        ("£10,000,000.00", 1e7),
        (" £.50 ", 0.5),
        ("£5.", 5.0),
    ],
)
def test_a_price_is_read_in_pounds(text, pounds):
    assert POUNDS.parse(text) == pounds


@pytest.mark.parametrize(
    "text",
    ["", "-5", "£-5", "-£5", "free", "nan", "inf", "1e5", "1,23", "£1.234,56", "£12 ono", "5 6", "9" * 400, "9" * 40, "£", "١٢"],
)
def test_what_is_no_price_raises(text):
    with pytest.raises(ValueError, match="is not a price in GBP"):
        POUNDS.parse(text)


@pytest.mark.parametrize("text", ["$40", "€1.999", "40 €", "EUR 5", "5 usd", "US$5", "£5 $3", "1,000.00 CHF", "5 Euros", "₹500"])
def test_an_amount_in_another_currency_is_no_price_in_pounds(text):
    with pytest.raises(OtherCurrency, match="is not a price in GBP"):
        POUNDS.parse(text)


@given(st.decimals(0, 10**9, places=2))
def test_every_amount_that_an_export_writes_is_read_back(amount):
    assert math.isclose(POUNDS.parse(f"£{amount:,.2f}"), float(amount), abs_tol=1e-9)


@pytest.mark.parametrize(
    ("text", "euros"),
    [
        ("12,50", 12.5),
        ("EUR 12,50", 12.5),
        ("12,50 EUR", 12.5),
        ("€12,50", 12.5),
        ("1.234,56 €", 1234.56),
        ("1 234,56 €", 1234.56),
        ("1\u202f234\u00a0567,5 €", 1234567.5),
        ("1'234,50", 1234.5),
        ("12,-", 12.0),
        ("1 200:-", 1200.0),
        ("12,-- €", 12.0),
        ("1.234", 1234.0),
        ("5 euros", 5.0),
        (",5", 0.5),
        ("0", 0.0),
    ],
)
def test_a_price_with_a_decimal_comma_is_read(text, euros):
    assert PriceFormat("EUR", ",").parse(text) == euros


@pytest.mark.parametrize("text", ["12.50", "1.23", "1,234.56", "12,50,00", "-5", "€-5", "12 €€", "1.2345", "VB", "12,50 VB"])
def test_a_price_that_has_no_decimal_comma_where_one_is_meant_is_not_guessed(text):
    with pytest.raises(ValueError, match="is not a price in EUR") as caught:
        PriceFormat("EUR", ",").parse(text)
    assert not isinstance(caught.value, OtherCurrency)


@pytest.mark.parametrize(
    ("currency", "text"),
    [("EUR", "£5"), ("EUR", "GBP 5"), ("EUR", "5 USD"), ("USD", "5 €"), ("USD", "5 euros"), ("CHF", "EUR 5"), ("PLN", "5 €")],
)
def test_an_amount_in_another_currency_than_the_tables_is_told(currency, text):
    with pytest.raises(OtherCurrency, match=f"is not a price in {currency}"):
        PriceFormat(currency).parse(text)


@pytest.mark.parametrize(
    ("currency", "text"),
    [("USD", "$1,234.50"), ("USD", "US$1,234.50"), ("USD", "1234.5 usd"), ("CAD", "C$1,234.50"), ("CHF", "CHF 1234.50")]
    + [("PLN", "1234.50 zł"), ("SEK", "1234.50 kr"), ("INR", "₹1,234.50"), ("XAF", "XAF 1234.5"), ("XAF", "1234.50")],
)
def test_a_currency_is_known_by_its_code_and_its_signs(currency, text):
    assert PriceFormat(currency).parse(text) == 1234.5


@given(
    st.decimals(0, 10**9, places=2),
    st.sampled_from([".", ","]),
    st.sampled_from(["GBP", "EUR", "USD", "CHF", "XAF"]),
    st.booleans(),
)
def test_every_amount_is_read_back_in_every_format(amount, decimal, currency, in_front):
    digits = f"{amount:,.2f}".translate(str.maketrans(",.", ".," if decimal == "," else ",."))
    text = f"{currency} {digits}" if in_front else f"{digits} {currency}"
    assert math.isclose(PriceFormat(currency, decimal).parse(text), float(amount), abs_tol=1e-9)


@given(st.text(max_size=12) | st.text("0123456789.,'€£ -EURUSD", max_size=14), st.sampled_from([".", ","]))
def test_any_text_is_a_price_of_at_least_0_or_none(text, decimal):
    try:
        assert PriceFormat("EUR", decimal).parse(text) >= 0
    except ValueError as error:
        assert "is not a price in EUR" in str(error)


@pytest.mark.parametrize(
    ("currency", "text", "amounts"),
    [
        ("GBP", "RRP £1,200, cost £ 300, yours for £45.50 or 40€", [1200, 300, 45]),
        ("EUR", "NP 1.200 €, jetzt 45,50€ statt EUR 300 oder £40", [1200, 45, 300]),
        ("EUR", "€12.5 and 7 EUR", [12, 7]),
        ("CHF", "CHF 1'200.50, Fr. 5", [1200, 5]),
        ("SEK", "nypris 1 500 kr, nu 500kr eller 5 krukor, SEK 20", [500, 500, 20]),
        ("PLN", "za 1200 zł albo 300 PLN", [1200, 300]),
        ("EUR", "cost 45 Euro, 3 europallets, 10 Euros", [45, 10]),
        ("JPY", "¥12,000 or 3000円", [12000, 3000]),
        ("EUR", "no price, 12 pieces", []),
    ],
)
def test_amounts_that_a_text_names_are_those_beside_the_currency(currency, text, amounts):
    assert named_amounts(text, currency) == amounts


@pytest.mark.parametrize(
    ("currency", "text", "times"),
    [("GBP", "£5, GBP 5, 5 pounds, €5", 1), ("EUR", "€5, 5 EUR, 5 euro, Europe, £5", 3), ("SEK", "5 kr, 5kr, krok, sek 9", 3)],
)
def test_the_signs_of_the_currency_are_counted_in_a_text(currency, text, times):
    assert count_signs(text, currency) == times


def test_our_own_lines_write_the_pounds_sign_and_other_currencies_codes():
    assert [before_amounts(currency) for currency in ("GBP", "EUR", "USD")] == ["£", "EUR ", "USD "]
