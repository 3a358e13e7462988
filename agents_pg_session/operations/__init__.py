"""What people do to a whole store rather than to one session: move it, mend it, clear it out.

Each operation is a function over a `SessionStore` that decides and reports; it never prints. The command line draws
what they report.
"""
