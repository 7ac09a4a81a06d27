"""Personal data in the spellings that people use to get it past a filter, and innocent texts that look alike.

What becomes a mark stands between « and »; all is made up (numbers that Ofcom keeps for drama, example domains).
"""

import re

PHONES = r"""
Ring «07700 900123» today
Ring «07700900123» today
Ring «+447700900123» today
Ring «+44 7700 900 123» today
Ring «+44 (0)7700 900123» today
Ring «+44(0)20 7946 0958» today
Ring «(+44) 7700 900123» today
Ring «+ 44 7700 900123» today
Ring «＋447700900123» today
Ring «+44-7700-900123» today
Ring «+44.7700.900123» today
Ring «0044 7700 900123» today
Ring «00 44 20 7946 0958» today
Ring «0044(0)7700 900123» today
Ring «44 7700 900123» today
Ring «447700900123» today
Ring «(44)7700 900123» today
Ring «(020) 7946-0958» today
Ring «020.7946.0958» today
Ring «0121-496-0123» today
Ring «(01632) 960 001» today
Ring «01632960001» today
Ring «01632 960-001» today
Ring «(01204) 62345» today
Ring «01204 62345» today
Ring «0800 111 111» today
Ring «0345 600 1234» today
Ring «0300 123 4567» today
Ring «05600 123456» today
Ring «0909 879 0123» today
Ring «07700_900123» today
Ring «07700_900_123» today
Ring «07700*900123» today
Ring «0*7*7*0*0*9*0*0*1*2*3» today
Ring «07700~900123» today
Ring «07700:900123» today
Ring «07700 : 900 : 123» today
Ring «07700;900123» today
Ring «07700=900123» today
Ring «07700+900+123» today
Ring «07700·900123» today
Ring «07700•900123» today
Ring «07700‧900123» today
Ring «07700․900123» today
Ring «07700。900123» today
Ring «07700/900123» today
Ring «07700 / 900 / 123» today
Ring «07700,900123» today
Ring «07700|900123» today
Ring «07700\900123» today
Ring «07700'900'123» today
Ring «07700 - 900 - 123» today
Ring «07700 ... 900 123» today
Ring «07700--900--123» today
Ring «07700–900–123» today
Ring «07700—900123» today
Ring «07700−900−123» today
Ring «07700⁃900123» today
Ring «07700﹣900123» today
Ring «07700－900123» today
Ring «0–7–7–0–0–9–0–0–1–2–3» today
Ring «07700      900123» today
Ring «0 7 7 0 0  9 0 0  1 2 3» today
Ring «07700\xa0900\xa0123» today
Ring «07700\u2009900123» today
Ring «07700\u3000900123» today
Ring «07700\n900123» today
Ring «07700\u200b900\u200b123» today
Ring «0\u200d7\u200d7\u200d0\u200d0\u200d9\u200d0\u200d0\u200d1\u200d2\u200d3» today
Ring «0\u00ad7700900123» today
Ring «07700&nbsp;900123» today
Ring «07700&#32;900123» today
Ring «07700<br>900123» today
Ring «07700<br/>900123» today
Ring «07700</b>900123» today
Ring «[07700] 900123» today
Ring «[07700]900123» today
Ring «{07700}900123» today
Ring «<07700>900123» today
Ring [«07700 900123»] today
Ring («07700 900123») today
Ring «O7700 900123» today
Ring «o7700 900123» today
Ring «Ｏ7700900123» today
Ring «O77OO 9OO123» today
Ring «0770O 900123» today
Ring «077oo900123» today
Ring «07700 9OO 123» today
Ring «07700 900l23» today
Ring «O77OO9OOI23» today
Ring «０７７００９００１２３» today
Ring «٠٧٧٠٠٩٠٠١٢٣» today
Ring «𝟎𝟕𝟕𝟎𝟎𝟗𝟎𝟎𝟏𝟐𝟑» today
Ring «⓪⑦⑦⓪⓪⑨⓪⓪①②③» today
Ring «⁰⁷⁷⁰⁰⁹⁰⁰¹²³» today
Ring «0️⃣7️⃣7️⃣0️⃣0️⃣9️⃣0️⃣0️⃣1️⃣2️⃣3️⃣» today
call «7700 900123»
call me on «7700900123»
mob:«7700900123»
whatsapp «7700 900 123»
my number is «7700900123»
Tel: «0770 090012»
phone +«0 7700 900123»
Text me on «00353871234567»
Ring «+353 87 123 4567» today
Ring «+33 6 12 34 56 78» today
Ring «+49 151 23456789» today
Ring «+1 (555) 123-4567» today
contact«07700900123»Items can be delivered
Price £425«07700900123»
https://wa.me/«447700900123»
tel:«+44.7700.900123»
Ring «07700 900123»/«07700 900456»
Ring zero seven seven hundred, nine hundred, «one two three»
Ring «07seven00 900123» today
Ring «0 double 7 00 900123» today
Ring «07700 and 900123» today
Tel: «960001»
"""

EMAILS = r"""
write to «joe@example.com» please
write to «JOE@EXAMPLE.COM» please
write to «joe.o'neil+x@mail.example.co.uk» please
write to «joe_smith-1@example.org» please
write to «joe@xn--exmple-cua.com» please
write to «jöe@exämple.com» please
write to «joe@example.museum» please
write to «joe@example.рф» please
write to «joe@a.b.c.d.e.f.g.com» please
write to «joe&ann@example.com» please
write to «joe%x@example.com» please
write to «joe(at)example.com» please
write to «joe (at) example.com» please
write to «joe [at] gmail [dot] com» please
write to «joe{at}example{dot}com» please
write to «joe<at>example.com» please
write to «joe*at*example.com» please
write to «joe_at_example.com» please
write to «joe[@]example.com» please
write to «joe(@)example.com» please
write to «joe@example(.)com» please
write to «joe@example[dot]co[dot]uk» please
write to «joe at gmail dot com» please
write to «joe at example dot com» please
write to «joe AT example DOT com» please
write to «joe at live dot co dot uk» please
write to «joe at icloud dot com» please
write to «joe at outlook.com» please
write to «joe arroba example punto com» please
e-mail «joe at example.com» please
write to «joe @ hotmail.co.uk» please
write to «joe @ example.com» please
write to «joe @example.com» please
write to «joe@ example.com» please
write to «joe @ example . com» please
write to «joe@example .com» please
write to «joe@\nexample.com» please
write to «joe\n@example.com» please
write to «joe＠example.com» please
write to «joe﹫example.com» please
write to «ｊｏｅ@example.com» please
write to «joe@example。com» please
write to «joe@example․com» please
write to «joe\u200b@example.com» please
write to «joe@\u200bexample.com» please
write to «joe@example\u200b.com» please
write to «joe&#64;example.com» please
write to «joe&commat;example.com» please
write to «joe%40example.com» please
write to «joe@example,com» please
write to «joe@gmail» please
write to «joe@gmail com» please
write to «joe @ hotmail» please
mailto:«joe@example.com»
joe is at («joe@example.com»).
«joe@example.com», any time
write to «joe at g mail dot com» please
write to «joe gmail com» please
write to «joe@exa mple.com» please
"""

POSTCODES = r"""
from «SW1A 1AA», or
from «SW1A1AA», or
from «sw1a1aa», or
from «BS4 1AB», or
from «bs4 1ab», or
from «BS41AB», or
from «EC1A 1BB», or
from «W1A 0AX», or
from «M1 1AE», or
from «B33 8TH», or
from «CR2 6XH», or
from «DN55 1PT», or
from «N1\xa09GU», or
from «ls14dy», or
from «Ls1 4dy», or
from «EH1 1YZ», or
from «CF10 1ST», or
from «E16AN», or
from «G1 1AA», or
from «BT1 5GS», or
from «JE2 3AB», or
from «SW1A    1AA», or
from «SW1A\n1AA», or
from «SW1A-1AA», or
from «SW1A - 1AA», or
from «SW1A.1AA», or
from «SW1A_1AA», or
from «SW1A–1AA», or
from «SW1A−1AA», or
from «ＳＷ１Ａ １ＡＡ», or
from «SW1A\u200b1AA», or
from «SW1A&nbsp;1AA», or
from «SW1A<br>1AA», or
Address: «SW1A-1AA»
Bed, «LS12 4DY»
Bed («E1 6AN»)
«E1 6AN»/«E2 7BB»
«E1 6AN» / «E2 7BB»
Leeds «LS14DY» only
BRISTOL «BS41AB» only
Clifton «BS81AB» only
Pick up at 12 High Road«B45 9XE»
Valley«BS4 1AB» only
«BS4 1AB»Collection
gate«Ls99xx»Thanks
LONG ROAD«B45 9XE»WAREHOUSE
postcode:«DD14HN»
from «S W 1 A 1 A A», or
from «SW1A 1 AA», or
from «W1A OAX», or
from «M2 8GB», or
"""

NAMES = r"""
Posted by «Ann Smith». Collection only from here
Nice bed. Posted by «Ann Smith». Collect soon
Nice bed. posted by «Ann Smith». Collect soon
Nice bed. POSTED BY «ANN SMITH». Collect soon
Nice bed. Posted by: «Ann Smith». Collect soon
Posted by «Ann Smith», any questions ask
Posted by «J. Smith», any questions ask
Posted by «Dr. Ann Smith», any questions ask
Posted by «Ann»! Any questions ask
Posted by «O'Brien & Sons», any questions ask
Posted by «Müller»; any questions ask
Posted by «Ann Smith» on 25 February, any questions ask
Posted by «Ann Smith» at Beds, any questions ask
Posted\xa0by «Ann Smith». Collect soon
Posted&nbsp;by «Ann Smith». Collect soon
Posted\u200b by «Ann Smith». Collect soon
Posted\nby «Ann Smith». Collect soon
Posted by «Ann Smith» in Beds in Leeds. 25 February 2022
posted by «Ann Smith» in beds in leeds. 25 February 2022
POSTED BY «Ann Smith» in Beds in Leeds. 25 February 2022
Posted by «Ann\nSmith» in Beds in Leeds. 25 February 2022
Posted by «Ann Smith» in beds in leeds. 25/02/2022
Posted by «Ann Smith» in Beds in Leeds. 2022-02-25 and more
Posted by «张伟» in Beds in Leeds. 25 February 2022
Posted by «Royal Tom» in Beds in Leeds. 25 February 2022
Posted by «The Sofa Company» in Beds in Leeds. 25 February 2022
posted by «ann» in leeds. Collect soon
Posted by «Air Force» in Beds in Leeds. Nice
The seller is «Ann Smith». Collect soon
"""

INNOCENT = r"""
Size 10 12 14 16 18 20 22 24
Sizes 8, 10, 12, 14, 16, 18 and 20
0-3 3-6 6-9 9-12 months
0-3, 3-6, 6-9, 9-12, 12-18, 18-24 months
Age 0/3 3/6 6/9 9/12
EU 36 37 38 39 40 41 42
200 x 150 x 60 cm
200x150x60
H745 x W600 x D580
W 1200mm D 600mm H 720mm
1200 600 720 mm
7200 600 300 mm worktop
90 x 190 x 25; 135 x 190 x 25
0.75 x 1.20 m, 0.7 0.8 0.9 1.0 1.1
0.5 1.0 1.5 2.0 2.5 kg
1:18 scale, 1:43 scale
01.12.2022 10:30
01/12/2022
12-05-2021
2022-02-26 14:05:03.123456
2022-02-26T14:05:03
2022-01-12 10:15:30
2021-03-07 14:05:03
On 01.02.2021 and 03.04.2021
Open 07:00 19:00 08:00 18:00
Open 07:30 - 19:30 Monday to Friday
08:00-20:00, 09:00-17:00
Sat 07:15, Sun 08:15
Time 00:07:10 to 00:09:45
£1,234.56
£10,000,000
£20 £30 £40 £50 £60 £70
10 for £5, 20 for £9, 50 for £20
Was £199.99 now £99.99 or £89.99 for two
20% off 30% off 40% off
ISBN 0747532699
ISBN 978-0-7475-3269-9
ISBN 9780747532699
EAN 4006381333931
EAN 0123456789012
0 12345 67890 5
SKU 036000291452
Item number 012345678905
Item 303456789012
company 1234567, 2345
ref 07 123 4567 8901
Part 11127 512 839
Part no 1K0 615 301 AA
VIN WVWZZZ1JZXW000001
VAT 123 4567 89
Serial 4CE0460D0G
IMEI 490154203237518
Order 20210304-000123
12c0b5e6-0160-4295-8034-120745327946
12c0b5e6-a016-4295-8034-120745327946
IMG_20220101_123456.jpg
DSC_0123.jpg
192.168.1.1 and 255.255.255.0
Version 10.0.19041.1288
1920x1080, 2560x1440, 3840x2160
100 000 km
1 000 000 views
12V 7Ah 20hr
220-240V 50/60Hz 1200-1400W
5000 6500 10000 mAh
2.4GHz 5GHz 802.11
0 to 60 in 4.5 seconds
1st 2nd 3rd 4th 5th 6th
Numbers 1-2-3-4-5-6-7-8-9-10
1 2 3 4 5 6 7 8 9 10 11 12
Lottery 03 11 19 27 38 44
Lego 75192, 10179, 42100
Hornby R3383TTS, R3384TTS
Scalextric C3999A
Trains 37401, 37402 and 47712
Set of 2, 4, 6, 8, 10 or 12 chairs
call of duty 1 2 3 4
Call of Duty: Modern Warfare 2019
ring size 6 7 8 9 10
Rings 1.5 ct, 0.75 ct
Text book 2019 2020 2021
mobile home 35 x 12
Mobile phone 128GB 8GB RAM
phone 128000 mAh
telephone table 60 x 30
contact lens 8.6 14.2
Contactors 3TF32 00-0A
Ring binder A4 x 10
0 7 9 11 12
o 7 9 o
10l 20l 30l tanks
100l tank, 50l tank, 25l tank
I7 16gb, I5 8gb
5l 10l 15l 20l 25l 30l
H2O, CO2, 10m², 5m³
½ ¼ ¾ inch
2½ x 3¾
i7 8GB
i5 6th generation
i9 9th gen 32GB
S7 8GB
S20 5G 128GB
M2 8GB
M1 16GB 512GB
M2 2TB NVMe
S24FE
M3 2DR
W4 6FT
S3 4WD
W8 4LB
L2 3FT
PS4 1TB
PS5 2 controllers
DDR3 2GB 1600MHz
DDR4 2x8GB
iPhone SE2 2nd hand
iPhone 12 64GB
XX-S4 3WE
RTX3060 12GB
GTX1060 6GB
UE40D5003BW
205/55R16 91V
225/45 R17 94W
Core i5-1234G7 8GB 256GB SSD
Asus ROG GL503GE laptop
ASUS ROG GL553VE laptop
BLIZZARD L400WH freezer
Asus GL702VM laptop
Dell E6440 laptop
Dell E5430 4GB
HP DV6 6GB
HP G62 4GB
Lenovo E520 6GB
Acer S240HL monitor
AOC G2460PF monitor
BenQ GL2460 monitor
Sony KD43XF80
Samsung NP350E5C
Toshiba C50 8GB
Canon EF 50mm F1.8
Nikon D5300 18-55
Baumatic BT10.3GL hood
Bosch WAE24166GB washer
Hotpoint FF200EP fridge
Beko DC7112W dryer
Dyson DC24 i
Karcher K2 K3 K4 K5
Makita DHP453
Model CB6 1HD
model S60 5DR
BMW E46 320D
BMW E90 3 series
Audi A4 B8 2.0 TDI
Ford F150 4WD
Honda CB125F 2016
Honda CR125R 2005
WD40 5L can
Bulb E27 60W, E14 40W
E27 9W LED, B22 9W LED
Screws M6 30mm, M8 40mm
M10 1.5mm pitch
B12 vitamin tablets
N95 masks
A4 A3 A5 paper
G4 G9 GU10 bulbs
Cable CAT5E 10M
SD 32GB, SD 64GB
LED TV 32 4HD
UK 10 EU 38 US 6
W32 L34 jeans
Size W30 L32
E10 5DR estate
tyres @ £15 each
CPU @1.80GHz
2 @ £5, 3 @ £7
2 tyres @ 15. In good condition
Sofa @ home. Call me
follow @blue_bikes_of_leeds
@joe_makes on Instagram
Buy Online @Gadcet .com
available at argos.co.uk
look at ebay.com
Bought at ikea.com last year
See it at john lewis dot com
Found at amazon.co.uk for £50
Retail at £50. Not used
Kept at home. Smoke free
Meet at leeds station
look at me dot dot dot
no parking at sky level
Worth a look at live events
at gmail prices
www.example.com/item?id=12345
http://example.com/a@b
Dot com boom book
Dot to dot at home
a.b.c@ nothing
Weight 5kg @ 2 each
Email me for details
Can be posted by courier in a box.
Posted by Royal Mail in UK.
POSTED BY me in Leeds
can be posted by arrangement
Can be posted by second class post
will be posted by Monday
It will be posted by special delivery
Items posted by tracked delivery
posted by next day courier
Posted by 1st class mail
Posted by Hermes or Evri
If posted by recorded delivery
can be posted by DPD at cost
to be posted by buyer's courier
usually posted by Friday
Posted by the weekend
posted by hand in Leeds
Happy to post by Royal Mail
Leaflets posted by the council
Signed by the author in London
Made by Smith & Sons in Leeds
Ann Smith designed this
London SE area
South East London
Area SW1
LS1 area of Leeds
near the M25 junction
off the A40 in Oxford
Junction 8 of the M1
Room B12 on floor 2
Flat 3, 45 High Street
Grade A1 condition
Route 66 sign 40cm
Spitfire MK1 1HD print
Catalogue N12 3XX
Ref E1-6AN
Code S4-3WE
Type N1-9GU
"""


_ESCAPE = re.compile(r"\\n|\\x[0-9a-f]{2}|\\u[0-9a-f]{4}")


def cases(block: str) -> list[str]:
    """The lines of a block, with \\n, \\x.. and \\u.... as the characters they stand for."""
    lines = filter(None, block.split("\n"))
    return [_ESCAPE.sub(lambda escape: "\n" if escape[0] == "\\n" else chr(int(escape[0][2:], 16)), line) for line in lines]


def plain(case: str) -> str:
    """The text as somebody wrote it."""
    return re.sub("[«»]", "", case)


def marked(case: str, mark: str) -> str:
    """The text with every secret as its mark."""
    return re.sub("«[^»]*»", mark, case)


BLOCKS = {"[phone]": PHONES, "[email]": EMAILS, "[postcode]": POSTCODES, "[name]": NAMES}
SPELLINGS = [(mark, case) for mark, block in BLOCKS.items() for case in cases(block)]
