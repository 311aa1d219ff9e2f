"""Tables, figures and pages, from records alone: nothing here trains."""
