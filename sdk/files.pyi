from hasten._document import (
    parse_json as parse_json,
    parse_yaml as parse_yaml,
    read_json_lines as read_json_lines,
)
from hasten._files import (
    as_fields as as_fields,
    inside as inside,
    read_fields as read_fields,
    read_json as read_json,
)
from hasten._pictures import (
    Listing as Listing,
    describe_unread as describe_unread,
    list_folder as list_folder,
    list_names as list_names,
    picture_suffixes as picture_suffixes,
    read_rgb as read_rgb,
    to_rgb as to_rgb,
)
from hasten._prompts import read_prompts as read_prompts
from hasten._records import (
    append_lines as append_lines,
    read_records as read_records,
    read_sealed as read_sealed,
    repair as repair,
    seal as seal,
    unseal as unseal,
    write_atomically as write_atomically,
)
from hasten._saved import is_intact as is_intact, picture_files as picture_files, save_frames as save_frames
from hasten._text import read_lines as read_lines, read_text as read_text
from hasten._timings import cache_folder as cache_folder
