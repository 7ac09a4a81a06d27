"""Contact sheets: photos in rows with captions, to be looked at."""

import io
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from marketplace.cleaning import photos

NO_PHOTO = "#eeeeee"


def contact_sheet(tiles: Sequence[tuple[bytes | None, str, str | None]], columns: int = 8, tile: int = 128) -> bytes:
    """A PNG of photos in rows, each with a caption below and a coloured frame where one is given, on white.

    tiles: (cleaned JPEG, or None for a grey square; caption; colour name or "#rrggbb" or None). tile: side of a photo, pixels.
    Captions are cut to fit.
    """
    font_px, gap = max(10, tile // 10), max(4, tile // 16)
    font = ImageFont.load_default(size=font_px)
    cell_width, cell_height = tile + gap, tile + gap + font_px + font_px // 2
    rows = max(1, -(-len(tiles) // columns))
    sheet = Image.new("RGB", (gap + columns * cell_width, gap + rows * cell_height), photos.WHITE)
    draw = ImageDraw.Draw(sheet)
    for position, (jpeg, caption, colour) in enumerate(tiles):
        row, column = divmod(position, columns)
        left, top = gap + column * cell_width, gap + row * cell_height
        if jpeg is None:
            draw.rectangle((left, top, left + tile - 1, top + tile - 1), fill=NO_PHOTO)
        else:
            sheet.paste(Image.fromarray(photos.pixels(jpeg)).resize((tile, tile), photos.RESAMPLE), (left, top))
        if colour:
            frame = max(2, gap // 2)
            box = (left - frame, top - frame, left + tile + frame - 1, top + tile + frame - 1)
            draw.rectangle(box, outline=colour, width=frame)
        draw.text((left, top + tile + gap // 2), _cut(" ".join(caption.split()), font, tile), fill="black", font=font)
    png = io.BytesIO()
    sheet.save(png, "PNG")
    return png.getvalue()


def _cut(caption: str, font: ImageFont.FreeTypeFont, width_px: int) -> str:
    if font.getlength(caption) <= width_px:
        return caption
    kept = len(caption)
    while kept and font.getlength(caption[:kept].rstrip() + "...") > width_px:
        kept -= 1
    return caption[:kept].rstrip() + "..."
