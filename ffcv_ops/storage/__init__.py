"""From the bytes of .beton files to the bytes of one stored image.

beton_file   one file: header, tables, what lies beside it       validate   is it whole, and free of contradictions?
shards       which files a path or pattern means                 index      all of them as one table of samples
reading      an image's bytes, from the file or read ahead       checksum   are they those that were written?
info         a data set in a few words, without a reader
sources      which file a sample was made from, for messages
"""
