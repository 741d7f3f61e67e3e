"""Updates to bytes on the wire and back; `table.CODECS` names every way there is."""
