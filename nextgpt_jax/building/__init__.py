"""Instruction data: requests and conversations written from captions, by templates or a chat endpoint; a page to look
at them; the reference's formats."""
