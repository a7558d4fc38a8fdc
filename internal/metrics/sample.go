package metrics

import (
	"strings"

	"github.com/prometheus/client_golang/prometheus"
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

// sample is the value of a metric at one moment. It is prometheus.NewConstMetric without a copy
// of each label and a sort for each sample, which for a thousand tunnels are most of the work.
type sample struct {
	*family
	labels []*label // in the order of their names
	value  float64
}

// Desc returns the description of the metric.
func (s *sample) Desc() *prometheus.Desc { return s.desc }

// Write writes the sample to m.
func (s *sample) Write(m *dto.Metric) error {
	m.Label = s.labels
	if s.counter {
		m.Counter = &dto.Counter{Value: &s.value}
	} else {
		m.Gauge = &dto.Gauge{Value: &s.value}
	}
	return nil
}
