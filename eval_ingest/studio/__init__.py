"""The source side: reads configurations, windows and rasters of rslearn datasets."""
