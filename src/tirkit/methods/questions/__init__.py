"""Training questions for a catalogue that has none: by a teacher behind an endpoint, or from templates.

    what is wanted          slots.draw_slots     which tools a question needs, how hard it is; all tools in turn
    who writes it           teacher, templates   a model that is shown the documents; or the documents' own words
    whether it is any good  check                tools and arguments, what is said, duplicates, a run where allowed

Everything follows from (seed, number of the batch), so that what was killed goes on with the next batch.
"""
