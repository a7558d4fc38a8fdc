package metrics

import (
	"strings"

	dto "github.com/prometheus/client_model/go"
)

type label = dto.LabelPair

// newLabel returns a label. A link's name may be any bytes, and a value must be UTF-8.
func newLabel(name, value string) *label {
	value = strings.ToValidUTF8(value, "\uFFFD")
	return &label{Name: &name, Value: &value}
}

// labels returns labels of names and values in turns, of which the names are in order.
func labels(namesAndValues ...string) (all []*label) {
	for i := 0; i < len(namesAndValues); i += 2 {
		all = append(all, newLabel(namesAndValues[i], namesAndValues[i+1]))
	}
	return all
}

// head returns the family without samples.
func (f *family) head() *dto.MetricFamily {
	kind := dto.MetricType_GAUGE
	if f.counter {
		kind = dto.MetricType_COUNTER
	}
	return &dto.MetricFamily{Name: &f.name, Help: &f.help, Type: &kind}
}

// sample returns a value with labels, which are in the order of their names.
func (f *family) sample(labels []*label, v float64) *dto.Metric {
	if f.counter {
		return &dto.Metric{Label: labels, Counter: &dto.Counter{Value: &v}}
	}
	return &dto.Metric{Label: labels, Gauge: &dto.Gauge{Value: &v}}
}
