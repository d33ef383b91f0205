"""S3 and stores that speak it.

`client` one boto3 client a process, endpoint and region; thin calls · `errors` what went wrong, as our types.

As a source: `objects` which objects, pinned to a content · `ranges` one object as a file · `source` the plan ·
`reader` a lane's reader.
"""
