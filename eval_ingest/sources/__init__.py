"""Where windows come from: a folder, a bucket, an archive; listed once, read, never written.

What a configuration means is inference/, what the bytes of a raster mean is decoding/.
"""
