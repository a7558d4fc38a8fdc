package metrics

// Names returns the names of all metrics of goipip.
func Names() (names []string) {
	for _, f := range families {
		names = append(names, f.name)
	}
	return names
}

// Labels returns the names of the labels of a metric; nil for those of others.
func Labels(name string) []string {
	for _, f := range families {
		if f.name == name {
			return f.labelNames
		}
	}
	return nil
}
