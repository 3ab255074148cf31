"""Files as open-data portals publish them, each with the table a person reads in it: read right with no hint."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

import pytest

from .conftest import Read


@dataclass(frozen=True, slots=True, kw_only=True)
class Portal:
    """A file, the names a person would give its columns, and its rows."""

    data: bytes
    names: list[str]
    rows: list[tuple[Any, ...]]


D = date
PORTALS: dict[str, Portal] = {
    # Germany: CP1252, semicolons, decimal comma, dots for thousands, dates with dots.
    "german-districts": Portal(
        data=(
            "Gemeinde;Einwohner;Fläche km²;Stand\r\n"
            "München;1.512.491;310,70;31.12.2022\r\n"
            "Nürnberg;523.026;186,46;31.12.2022\r\n"
            "Würzburg;126.933;87,63;31.12.2022\r\n"
            "Fürth;131.433;63,35;31.12.2022\r\n"
            "Coburg;41.842;48,29;31.12.2022\r\n"
            "Prien;10.802;44,84;31.12.2022\r\n"
        ).encode("cp1252"),
        names=["Gemeinde", "Einwohner", "Fläche km²", "Stand"],
        rows=[
            ("München", 1512491, 310.70, D(2022, 12, 31)),
            ("Nürnberg", 523026, 186.46, D(2022, 12, 31)),
            ("Würzburg", 126933, 87.63, D(2022, 12, 31)),
            ("Fürth", 131433, 63.35, D(2022, 12, 31)),
            ("Coburg", 41842, 48.29, D(2022, 12, 31)),
            ("Prien", 10802, 44.84, D(2022, 12, 31)),
        ],
    ),
    # A statistics office: title, blank line, names and a row of units, totals and footnotes below.
    "units-row-and-footnotes": Portal(
        data=(
            b"Table 4.2: Energy by region\n"
            b"\n"
            b"Region,Population,Consumption,Share\n"
            b",persons,GWh,%\n"
            b"North,120500,310.5,12.1\n"
            b"East,98200,280.1,10.9\n"
            b"South,301100,990.7,38.6\n"
            b"West,287000,985.2,38.4\n"
            b"\n"
            b"Source: Statistical Office\n"
            b"1) preliminary\n"
        ),
        names=["Region", "Population persons", "Consumption GWh", "Share %"],
        rows=[
            ("North", 120500, 310.5, 12.1),
            ("East", 98200, 280.1, 10.9),
            ("South", 301100, 990.7, 38.6),
            ("West", 287000, 985.2, 38.4),
        ],
    ),
    # Two header rows, the upper one over several columns (merged cells in the workbook it came from).
    "two-header-rows": Portal(
        data=(
            "Land;2021;;2022;\n"
            ";Männer;Frauen;Männer;Frauen\n"
            "Wien;1012;1104;1020;1110\n"
            "Tirol;380;392;384;395\n"
            "Kärnten;277;287;276;286\n"
            "Vorarlberg;199;203;200;205\n"
        ).encode(),
        names=["Land", "2021 Männer", "2021 Frauen", "2022 Männer", "2022 Frauen"],
        rows=[
            ("Wien", 1012, 1104, 1020, 1110),
            ("Tirol", 380, 392, 384, 395),
            ("Kärnten", 277, 287, 276, 286),
            ("Vorarlberg", 199, 203, 200, 205),
        ],
    ),
    # A row of totals is a row like any other.
    "totals-row": Portal(
        data=(
            b"Department,Staff,Budget\nHealth,120,1500000\nTransport,340,2750000\nParks,45,310000\nTotal,505,4560000\n"
        ),
        names=["Department", "Staff", "Budget"],
        rows=[
            ("Health", 120, 1500000),
            ("Transport", 340, 2750000),
            ("Parks", 45, 310000),
            ("Total", 505, 4560000),
        ],
    ),
    # An export of a workbook with merged cells: the group stands only in its first row.
    "merged-cells": Portal(
        data=(
            b"District,School,Pupils\nCentre,Hill School,312\n,Park School,287\n,St Mary,401\n"
            b"Harbour,Quay,198\n,Dock,155\n"
        ),
        names=["District", "School", "Pupils"],
        rows=[
            ("Centre", "Hill School", 312),
            (None, "Park School", 287),
            (None, "St Mary", 401),
            ("Harbour", "Quay", 198),
            (None, "Dock", 155),
        ],
    ),
    "mark-and-tabs": Portal(
        data=(
            "\ufeffstation\tdate\ttemp\r\nAbisko\t2024-01-01\t-12.5\r\nKiruna\t2024-01-01\t-15.0\r\n"
            "Luleå\t2024-01-01\t-8.25\r\n"
        ).encode(),
        names=["station", "date", "temp"],
        rows=[("Abisko", D(2024, 1, 1), -12.5), ("Kiruna", D(2024, 1, 1), -15.0), ("Luleå", D(2024, 1, 1), -8.25)],
    ),
    "excel-sep-line": Portal(
        data=b"sep=;\r\nid;name;price\r\n1;Bread;2,50\r\n2;Milk;1,19\r\n3;Eggs;3,05\r\n4;Tea;12,00\r\n",
        names=["id", "name", "price"],
        rows=[(1, "Bread", 2.5), (2, "Milk", 1.19), (3, "Eggs", 3.05), (4, "Tea", 12.0)],
    ),
    # France: thin and no-break spaces for thousands, decimal comma.
    "french-spaces": Portal(
        data=(
            "commune;population;budget\n"
            "Lyon;522\u202f969;1\u202f234\u202f567,89\n"
            "Nice;342\u202f669;987\u202f654,30\n"
            "Brest;139\u202f602;412\u202f001,05\n"
            "Albi;48\u202f902;98\u202f120,00\n"
        ).encode(),
        names=["commune", "population", "budget"],
        rows=[
            ("Lyon", 522969, 1234567.89),
            ("Nice", 342669, 987654.3),
            ("Brest", 139602, 412001.05),
            ("Albi", 48902, 98120.0),
        ],
    ),
    "iso-weeks": Portal(
        data=b"week,cases,deaths\n2024-W01,120,3\n2024-W02,98,1\n2024-W03,143,4\n2024-W04,77,0\n",
        names=["week", "cases", "deaths"],
        rows=[("2024-W01", 120, 3), ("2024-W02", 98, 1), ("2024-W03", 143, 4), ("2024-W04", 77, 0)],
    ),
    # Several tables under each other: the first is read, the others are a skip with a name.
    "several-tables": Portal(
        data=(
            b"Name,Seats\nRed,12\nBlue,34\nGreen,7\nYellow,3\nWhite,1\n\nWard,Turnout,Valid\n"
            b"A,61.5,1203\nB,58.2,998\nC,70.0,1410\n"
        ),
        names=["Name", "Seats"],
        rows=[("Red", 12), ("Blue", 34), ("Green", 7), ("Yellow", 3), ("White", 1)],
    ),
    "comment-lines": Portal(
        data=(
            b"# Hourly ozone, station DEBE010\n# unit: ug/m3\n# contact: air@example.org\n"
            b"time,ozone,valid\n2024-06-01T00:00:00,55.1,true\n2024-06-01T01:00:00,51.7,true\n"
            b"2024-06-01T02:00:00,48.9,false\n"
        ),
        names=["time", "ozone", "valid"],
        rows=[
            (datetime(2024, 6, 1, 0), 55.1, True),
            (datetime(2024, 6, 1, 1), 51.7, True),
            (datetime(2024, 6, 1, 2), 48.9, False),
        ],
    ),
    # The names are a comment as well, and comments come again between the rows.
    "hash-header": Portal(
        data=(
            b"# GHCN extract\n#station,year,tmax\nUSW00094728,2021,36.7\nUSW00094728,2022,37.2\nUSW00094728,2023,35.0\n"
            b"# end of file\n"
        ),
        names=["#station", "year", "tmax"],
        rows=[("USW00094728", 2021, 36.7), ("USW00094728", 2022, 37.2), ("USW00094728", 2023, 35.0)],
    ),
    "trailing-delimiters": Portal(
        data=b"code;label;value;\n01;Alpha;10;\n02;Beta;20;\n03;Gamma;30;\n04;Delta;40;\n",
        names=["code", "label", "value", "column_4"],
        rows=[
            ("01", "Alpha", 10, None),
            ("02", "Beta", 20, None),
            ("03", "Gamma", 30, None),
            ("04", "Delta", 40, None),
        ],
    ),
    "trailing-delimiters-not-in-the-header": Portal(
        data=b"code;label;value\n01;Alpha;10;\n02;Beta;20;\n03;Gamma;30;\n04;Delta;40;\n",
        names=["code", "label", "value", "column_4"],
        rows=[
            ("01", "Alpha", 10, None),
            ("02", "Beta", 20, None),
            ("03", "Gamma", 30, None),
            ("04", "Delta", 40, None),
        ],
    ),
    "quoted-numbers": Portal(
        data=(
            b'"id","amount","paid"\n"1","1,250.50","2024-02-01"\n"2","99.00","2024-02-03"\n'
            b'"3","12,000.00","2024-02-07"\n"4","5.25","2024-03-01"\n'
        ),
        names=["id", "amount", "paid"],
        rows=[
            (1, 1250.5, D(2024, 2, 1)),
            (2, 99.0, D(2024, 2, 3)),
            (3, 12000.0, D(2024, 2, 7)),
            (4, 5.25, D(2024, 3, 1)),
        ],
    ),
    # Words for "no value" in the languages of the offices that filled the form in.
    "words-for-missing": Portal(
        data=(
            "id,áno,count,rate\n1,a,12,0.5\n2,b,k. A.,0.7\n3,c,s/d,n.d.\n4,d,17,н/д\n5,e,nd,1.25\n"
            "6,f,20,..\n7,g,21,0.9\n"
            "8,h,22,1.1\n9,i,23,1.3\n10,j,24,0.8\n11,k,25,0.6\n12,l,26,1.0\n"
        ).encode(),
        names=["id", "áno", "count", "rate"],
        rows=[
            (1, "a", 12, 0.5),
            (2, "b", None, 0.7),
            (3, "c", None, None),
            (4, "d", 17, None),
            (5, "e", None, 1.25),
            (6, "f", 20, None),
            (7, "g", 21, 0.9),
            (8, "h", 22, 1.1),
            (9, "i", 23, 1.3),
            (10, "j", 24, 0.8),
            (11, "k", 25, 0.6),
            (12, "l", 26, 1.0),
        ],
    ),
    "percent-with-comma-and-space": Portal(
        data=(
            "Jahr;Quote;Veränderung\n2019;5,0 %;-0,2 %\n2020;5,9 %;0,9 %\n2021;5,7 %;-0,2 %\n"
            "2022;1 234,5 %;-0,4 %\n2023;5,7 %;0,4 %\n"
        ).encode(),
        names=["Jahr", "Quote", "Veränderung"],
        rows=[(2019, 5.0, -0.2), (2020, 5.9, 0.9), (2021, 5.7, -0.2), (2022, 1234.5, -0.4), (2023, 5.7, 0.4)],
    ),
    # Telephone numbers and postcodes are no numbers.
    "phones-and-postcodes": Portal(
        data=(
            b"name,plz,tel\nAmt A,01067,0351 4880\nAmt B,10115,030 901820\nAmt C,80331,+49 89 2330\n"
            b"Amt D,04109,0341/1230\n"
        ),
        names=["name", "plz", "tel"],
        rows=[
            ("Amt A", "01067", "0351 4880"),
            ("Amt B", "10115", "030 901820"),
            ("Amt C", "80331", "+49 89 2330"),
            ("Amt D", "04109", "0341/1230"),
        ],
    ),
    "coordinates-with-commas": Portal(
        data=(
            b"id;lon;lat;name\n1;13,404954;52,520008;Mitte\n2;9,993682;53,551086;Altona\n"
            b"3;11,576124;48,137154;Au\n4;6,953101;50,935173;Deutz\n"
        ),
        names=["id", "lon", "lat", "name"],
        rows=[
            (1, 13.404954, 52.520008, "Mitte"),
            (2, 9.993682, 53.551086, "Altona"),
            (3, 11.576124, 48.137154, "Au"),
            (4, 6.953101, 50.935173, "Deutz"),
        ],
    ),
    "point-in-one-cell": Portal(
        data=b'stop,where,lines\nA,"52.520008, 13.404954",3\nB,"53.551086, 9.993682",12\nC,"48.137154, 11.576124",7\n',
        names=["stop", "where", "lines"],
        rows=[("A", "52.520008, 13.404954", 3), ("B", "53.551086, 9.993682", 12), ("C", "48.137154, 11.576124", 7)],
    ),
    "json-in-a-cell": Portal(
        data=(
            b'id,kind,payload\n1,open,"{""a"": 1, ""b"": [1, 2]}"\n2,shut,"{""a"": 2, ""b"": []}"\n'
            b'3,open,"{""a"": 3, ""b"": [7]}"\n'
        ),
        names=["id", "kind", "payload"],
        rows=[
            (1, "open", '{"a": 1, "b": [1, 2]}'),
            (2, "shut", '{"a": 2, "b": []}'),
            (3, "open", '{"a": 3, "b": [7]}'),
        ],
    ),
    "old-mac": Portal(
        data=b"id,city\r1,Oslo\r2,Bergen\r3,Tromso\r",
        names=["id", "city"],
        rows=[(1, "Oslo"), (2, "Bergen"), (3, "Tromso")],
    ),
    # Lines of an address inside quotes, on Windows.
    "address-over-lines": Portal(
        data=(
            b'id,address,opened\r\n1,"1 High St\r\nLeeds",01/03/2019\r\n2,"Flat 2\r\n9 Low Rd\r\n'
            b'York",25/12/2020\r\n3,Hull,14/07/2021\r\n'
        ),
        names=["id", "address", "opened"],
        rows=[
            (1, "1 High St\r\nLeeds", D(2019, 3, 1)),
            (2, "Flat 2\r\n9 Low Rd\r\nYork", D(2020, 12, 25)),
            (3, "Hull", D(2021, 7, 14)),
        ],
    ),
    # United States: money with signs, negatives in brackets, month first.
    "us-money": Portal(
        data=(
            b'Agency,Obligated,Date\nDOE,"$1,250,000.00",12/31/2023\nNASA,"$(4,500.25)",01/15/2024\n'
            b'EPA,$310.00,02/28/2024\nNSF,"$12,000.10",03/17/2024\n'
        ),
        names=["Agency", "Obligated", "Date"],
        rows=[
            ("DOE", 1250000.0, D(2023, 12, 31)),
            ("NASA", -4500.25, D(2024, 1, 15)),
            ("EPA", 310.0, D(2024, 2, 28)),
            ("NSF", 12000.1, D(2024, 3, 17)),
        ],
    ),
    # Russia: CP1251, semicolons, dates with dots, "нет данных".
    "russian-register": Portal(
        data=(
            "Наименование;ИНН;Дата;Сумма\r\nООО Ромашка;7701234567;01.02.2024;1200,50\r\n"
            "ЗАО Лютик;7712345678;15.03.2024;нет данных\r\n"
            "ИП Иванов;7723456789;28.11.2023;99,00\r\nАО Север;7734567890;07.07.2023;310000,25\r\n"
        ).encode("cp1251"),
        names=["Наименование", "ИНН", "Дата", "Сумма"],
        rows=[
            ("ООО Ромашка", 7701234567, D(2024, 2, 1), 1200.5),
            ("ЗАО Лютик", 7712345678, D(2024, 3, 15), None),
            ("ИП Иванов", 7723456789, D(2023, 11, 28), 99.0),
            ("АО Север", 7734567890, D(2023, 7, 7), 310000.25),
        ],
    ),
    # Poland: UTF-16 with a mark and tabs, as Excel writes "Unicode text".
    "excel-unicode-text": Portal(
        data=(
            "Województwo\tLiczba\tUdział\r\nŁódzkie\t2\u00a0394\u00a0946\t6,3\r\n"
            "Śląskie\t4\u00a0375\u00a0947\t11,6\r\nOpolskie\t948\u00a0583\t2,5\r\n"
        ).encode("utf-16"),
        names=["Województwo", "Liczba", "Udział"],
        rows=[("Łódzkie", 2394946, 6.3), ("Śląskie", 4375947, 11.6), ("Opolskie", 948583, 2.5)],
    ),
    # Eurostat: the dimensions in one column with commas, the years in tabs, ":" for missing, flags after values.
    "tabs-with-commas-inside": Portal(
        data=(
            b"freq,unit,geo\\TIME_PERIOD\t2019 \t2020 \t2021 \nA,PC,AT\t5.1 \t6.0 \t6.2 \n"
            b"A,PC,BE\t5.5 \t5.8 \t6.3 \nA,PC,DE\t3.0 \t3.7 \t3.7 \n"
            b"A,PC,FI\t6.8 \t7.7 \t7.7 \n"
        ),
        names=["freq,unit,geo\\TIME_PERIOD", "2019", "2020", "2021"],
        rows=[
            ("A,PC,AT", 5.1, 6.0, 6.2),
            ("A,PC,BE", 5.5, 5.8, 6.3),
            ("A,PC,DE", 3.0, 3.7, 3.7),
            ("A,PC,FI", 6.8, 7.7, 7.7),
        ],
    ),
    # United Kingdom: names of months in words, a blank first column, padded numbers.
    "months-in-words": Portal(
        data=(
            b"Date,Average price,Volume\n1 January 2023,285000, 1200\n1 February 2023,284500, 980\n"
            b"1 March 2023,286250, 1310\n1 April 2023,287000, 1002\n"
        ),
        names=["Date", "Average price", "Volume"],
        rows=[
            (D(2023, 1, 1), 285000, 1200),
            (D(2023, 2, 1), 284500, 980),
            (D(2023, 3, 1), 286250, 1310),
            (D(2023, 4, 1), 287000, 1002),
        ],
    ),
    # Netherlands: a page of text above the table, with commas in it.
    "long-preamble": Portal(
        data=(
            b'"Bevolking; kerncijfers"\n"Onderwerp";"Perioden";"Mannen";"Vrouwen"\n'
            b'"Onderwerp";"Perioden";"aantal";"aantal"\n'
            b'"Totaal";"2021";"8686536";"8788879"\n"Totaal";"2022";"8745468";"8845204"\n'
            b'"Totaal";"2023";"8857054";"8954237"\n'
            b'"Bron: CBS"\n'
        ),
        names=["Onderwerp", "Perioden", "Mannen aantal", "Vrouwen aantal"],
        rows=[
            ("Totaal", 2021, 8686536, 8788879),
            ("Totaal", 2022, 8745468, 8845204),
            ("Totaal", 2023, 8857054, 8954237),
        ],
    ),
    # Times without seconds, booleans in words of the country.
    "flags-and-times": Portal(
        data=(
            b"sensor;datum;zeit;aktiv\nA1;01.06.2024;08:15;ja\nA2;01.06.2024;08:30;nein\n"
            b"A3;13.06.2024;09:05;ja\nA4;14.06.2024;10:45;ja\n"
        ),
        names=["sensor", "datum", "zeit", "aktiv"],
        rows=[
            ("A1", D(2024, 6, 1), "08:15", True),
            ("A2", D(2024, 6, 1), "08:30", False),
            ("A3", D(2024, 6, 13), "09:05", True),
            ("A4", D(2024, 6, 14), "10:45", True),
        ],
    ),
}


@pytest.mark.parametrize("name", PORTALS)
def test_a_file_of_a_portal_is_read_as_a_person_reads_it(read: Read, name: str) -> None:
    portal = PORTALS[name]
    done = read(portal.data)
    assert done.frame.columns == portal.names
    assert done.rows == portal.rows
    assert done.result.quarantined == 0 and done.result.balance.closes
