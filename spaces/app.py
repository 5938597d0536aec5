"""A Space of Hugging Face: the page with mini, open to everybody. Spaces decides where it listens."""

from subjectgen.engine.devices import all_devices
from subjectgen.web.launch import serve
from subjectgen.web.page import page_of
from subjectgen.web.studio import open_studio

SECONDS = 600  # that one visitor may wait and paint

if __name__ == "__main__":
    page = page_of(open_studio("mini", all_devices(), timeout=SECONDS))
    serve(page, to_all=True)
    page.block_thread()
