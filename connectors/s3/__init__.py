"""S3 and stores that speak it.

`client` one boto3 client a process, endpoint and region; thin calls · `errors` what went wrong, as our types.
"""
