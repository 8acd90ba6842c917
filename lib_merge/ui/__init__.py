"""The Merge tab: gradio appears only in `tab` and `app`; everything else takes values and returns values."""
