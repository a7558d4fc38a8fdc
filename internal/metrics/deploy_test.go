package metrics_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"goipip/internal/metrics"
	"goipip/internal/netlab/labtest"

	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/cog/variants"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/prometheus"
	"github.com/grafana/grafana-foundation-sdk/go/stat"
	"github.com/grafana/grafana-foundation-sdk/go/statetimeline"
	"github.com/grafana/grafana-foundation-sdk/go/table"
	"github.com/grafana/grafana-foundation-sdk/go/timeseries"
)

const deploy = "../../deploy/"

// board is the dashboard.
type board struct {
	text []byte
	dashboard.Dashboard
	rows   []dashboard.RowPanel
	panels []panel
}

// panel is a panel of the dashboard.
type panel struct {
	dashboard.Panel
	queries []prometheus.Dataquery
}

// strict decodes JSON by Grafana's schema, of which this is the Go form that Grafana publishes.
func strict(t *testing.T, what string, raw []byte, into interface {
	UnmarshalJSONStrict([]byte) error
	Validate() error
}) {
	t.Helper()
	for _, err := range []error{into.UnmarshalJSONStrict(raw), into.Validate()} {
		if err != nil && err.Error() != "" { // an error without text is an empty list of errors
			t.Fatalf("%s: %v", what, err)
		}
	}
}

// readBoard reads the dashboard. What Grafana's schema does not know, or has of another type,
// fails the test.
func readBoard(t *testing.T) *board {
	t.Helper()
	types := cog.NewRuntime()
	for _, kind := range []variants.PanelcfgConfig{stat.VariantConfig(), statetimeline.VariantConfig(), table.VariantConfig(), timeseries.VariantConfig()} {
		types.RegisterPanelcfgVariant(kind)
	}

	text, err := os.ReadFile(deploy + "grafana.json")
	if err != nil {
		t.Fatal(err)
	}
	b := &board{text: text}
	strict(t, "dashboard", text, &b.Dashboard)
	var all struct{ Panels []json.RawMessage } // which the above leaves empty
	if err := json.Unmarshal(text, &all); err != nil {
		t.Fatal(err)
	}
	for i, raw := range all.Panels {
		var kind struct {
			Type    string
			Targets []json.RawMessage // likewise
		}
		if err := json.Unmarshal(raw, &kind); err != nil {
			t.Fatal(err)
		}
		if kind.Type == "row" {
			var row dashboard.RowPanel
			strict(t, fmt.Sprint("row ", i), raw, &row)
			b.rows = append(b.rows, row)
			continue
		}
		if _, ok := cog.ConfigForPanelcfgVariant(kind.Type); !ok {
			t.Fatalf("panel %d is of the type %q, which this test does not know", i, kind.Type)
		}
		p := panel{queries: make([]prometheus.Dataquery, len(kind.Targets))}
		strict(t, fmt.Sprint("panel ", i), raw, &p.Panel)
		for k, target := range kind.Targets {
			strict(t, fmt.Sprint("query of panel ", i), target, &p.queries[k])
		}
		b.panels = append(b.panels, p)
	}
	return b
}

// The dashboard is one that Grafana takes: each panel has its place, and shows the data source
// that the reader chooses.
func TestDashboard(t *testing.T) {
	t.Parallel()
	b := readBoard(t)
	if b.Uid == nil || *b.Uid == "" || b.Title == nil || b.SchemaVersion < 36 {
		t.Errorf("uid %v, title %v, schema version %d", b.Uid, b.Title, b.SchemaVersion)
	}
	kinds := map[string]dashboard.VariableType{}
	for _, v := range b.Templating.List {
		kinds[v.Name] = v.Type
	}
	if kinds["datasource"] != dashboard.VariableTypeDatasource || len(kinds) != 4 {
		t.Errorf("variables %v", kinds)
	}
	taken := map[[2]uint32]string{} // cells of the grid
	ids := map[uint32]bool{}
	place := func(title string, id uint32, at *dashboard.GridPos) {
		if title == "" || id == 0 || ids[id] || at == nil || at.W == 0 || at.H == 0 || at.X+at.W > 24 {
			t.Fatalf("panel %q: id %d, place %+v", title, id, at)
		}
		ids[id] = true
		for x := at.X; x < at.X+at.W; x++ {
			for y := at.Y; y < at.Y+at.H; y++ {
				if other, ok := taken[[2]uint32{x, y}]; ok {
					t.Fatalf("panels %q and %q overlap", title, other)
				}
				taken[[2]uint32{x, y}] = title
			}
		}
	}
	for _, r := range b.rows {
		place(*r.Title, r.Id, r.GridPos)
	}
	for _, p := range b.panels {
		place(*p.Title, *p.Id, p.GridPos)
		if p.Datasource == nil || p.Datasource.Uid == nil || *p.Datasource.Uid != "${datasource}" || len(p.queries) == 0 {
			t.Errorf("%s: data source %+v, %d queries", *p.Title, p.Datasource, len(p.queries))
		}
		for _, q := range p.queries {
			if q.Expr == "" || q.RefId == nil || q.Datasource == nil || *q.Datasource.Uid != "${datasource}" {
				t.Errorf("%s: query %+v", *p.Title, q)
			}
		}
	}
	if len(b.rows) < 2 || len(b.panels) < 10 {
		t.Errorf("%d rows, %d panels", len(b.rows), len(b.panels))
	}
}

// The alerts fire when they should and not otherwise.
func TestAlerts(t *testing.T) {
	t.Parallel()
	labtest.Need(t, "promtool")
	for _, args := range [][]string{{"check", "rules", "alerts.yml"}, {"test", "rules", "alerts_test.yml"}} {
		cmd := exec.Command("promtool", args...)
		cmd.Dir = deploy
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v: %s", strings.Join(args, " "), err, out)
		}
	}
	rules, err := os.ReadFile(deploy + "alerts.yml")
	if err != nil {
		t.Fatal(err)
	}
	docs, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	_, example, _ := strings.Cut(string(docs), "```yaml\n")
	example, _, _ = strings.Cut(example, "```")
	dir := t.TempDir()
	for name, text := range map[string]string{"prometheus.yml": example, "alerts.yml": string(rules)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("promtool", "check", "config", filepath.Join(dir, "prometheus.yml")).CombinedOutput(); err != nil || !strings.Contains(string(out), "6 rules") {
		t.Errorf("the example of docs/metrics.md: %v: %s", err, out)
	}
	tests, err := os.ReadFile(deploy + "alerts_test.yml")
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile(`alert: (\w+)`).FindAllStringSubmatch(string(rules), -1)
	if len(names) < 6 {
		t.Fatalf("alerts %q", names)
	}
	for _, name := range names {
		fires := regexp.MustCompile(`alertname: ` + name[1] + `\n +eval_time: \w+\n +exp_alerts:(?: &\w+)?\n`).Match(tests)
		silent := strings.Contains(string(tests), "{alertname: "+name[1]+",")
		if !fires || !silent {
			t.Errorf("%s: tested that it fires %v, and that it does not %v", name[1], fires, silent)
		}
		if !strings.Contains(string(docs), "| `"+name[1]+"` |") {
			t.Errorf("docs/metrics.md lacks %s", name[1])
		}
	}
}

var (
	metricName  = regexp.MustCompile(`\b(?:goipip|process|go)_\w+`)
	matchers    = regexp.MustCompile(`(\w+)\{([^}]*)\}`)
	matcherName = regexp.MustCompile(`(\w+) *(?:=~|!~|!=|=)`)
	grouping    = regexp.MustCompile(`(?:by|on|ignoring) *\(([^)]*)\)`)
	legend      = regexp.MustCompile(`{{ *(?:\$labels\.)?(\w+) *}}`)
)

// Every metric and label that the dashboard and the alerts name is one that a real Prometheus
// has when it has scraped a real goipip, and it has a result for every query.
func TestPrometheus(t *testing.T) {
	t.Parallel()
	labtest.Need(t, "prometheus")
	l := newLab(t)
	l.run(ofTunnel(1, 1, 2, `fast-path = "auto"`)+ofTunnel(2, 9, 4, "")+ofTunnel(3, 1, 3, ""), "--metrics", served)
	l.has(`goipip_tunnel_up{tunnel="tun3"}`, 1)
	e := l.scrape()

	b := readBoard(t)
	alertsText, err := os.ReadFile(deploy + "alerts.yml")
	if err != nil {
		t.Fatal(err)
	}
	ofPrometheus := []string{"job", "instance"}
	for _, text := range []string{string(b.text), string(alertsText)} {
		text = strings.ReplaceAll(text, `\"`, `"`)
		for _, name := range metricName.FindAllString(text, -1) {
			if _, ok := e.labels[name]; !ok {
				t.Errorf("there is no %s", name)
			}
		}
		for _, m := range matchers.FindAllStringSubmatch(text, -1) {
			for _, label := range matcherName.FindAllStringSubmatch(m[2], -1) {
				if !slices.Contains(append(metrics.Labels(m[1]), ofPrometheus...), label[1]) {
					t.Errorf("%s has no label %s", m[1], label[1])
				}
			}
		}
		all := ofPrometheus
		for _, name := range metrics.Names() {
			all = append(all, metrics.Labels(name)...)
		}
		for _, m := range slices.Concat(grouping.FindAllStringSubmatch(text, -1), legend.FindAllStringSubmatch(text, -1)) {
			for name := range strings.SplitSeq(m[1], ",") {
				if name = strings.TrimSpace(name); !slices.Contains(all, name) {
					t.Errorf("no metric has a label %s", name)
				}
			}
		}
	}

	p := l.prometheus()
	// Something to show.
	labtest.WaitFor(t, "samples of a tunnel at work", func() bool {
		l.ping(1, 1, 0)
		l.ping(2, 1, unanswered)
		l.ping(3, 1, unanswered)
		n := 0
		for _, q := range []string{
			`rate(goipip_tunnel_receive_packets_total{tunnel="tun1"}[2s]) > 0`, `rate(goipip_tunnel_dropped_packets_total{reason="no_route"}[2s]) > 0`,
			`rate(goipip_tunnel_icmp_errors_total[2s]) > 0`,
		} {
			n += min(1, len(p.query(t, q)))
		}
		return n == 3
	})
	chosen := strings.NewReplacer("$__rate_interval", "2s", "$job", ".*", "$instance", ".*", "$tunnel", ".*")
	for _, shown := range b.panels {
		for _, q := range shown.queries {
			if expr := chosen.Replace(q.Expr); len(p.query(t, expr)) == 0 {
				t.Errorf("%s: no result of %s", *shown.Title, expr)
			}
		}
	}
	for _, v := range b.Templating.List {
		if v.Type != dashboard.VariableTypeQuery {
			continue
		}
		m := regexp.MustCompile(`^label_values\((.*), (\w+)\)$`).FindStringSubmatch(*v.Definition)
		if m == nil || v.Query.Map["query"] != *v.Definition {
			t.Fatalf("variable %s: %q, %v", v.Name, *v.Definition, v.Query)
		}
		results := p.query(t, chosen.Replace(m[1]))
		if len(results) == 0 || results[0].Metric[m[2]] == "" {
			t.Errorf("variable %s: %v", v.Name, results)
		}
	}
	var rules struct {
		Groups []struct {
			Rules []struct{ Name, Health, State, LastError string }
		}
	}
	p.get(t, "/api/v1/rules", &rules)
	if len(rules.Groups) != 1 || len(rules.Groups[0].Rules) != 6 {
		t.Fatalf("rules %+v", rules)
	}
	for _, r := range rules.Groups[0].Rules {
		want := "inactive"
		if r.Name == "GoipipTunnelDown" {
			want = "pending" // it is not down for a minute
		}
		if r.Health != "ok" || r.State != want && r.Name != "GoipipPeerSilent" && r.Name != "GoipipPacketsDropped" {
			t.Errorf("%s is %s, %s: %s, want %s", r.Name, r.Health, r.State, r.LastError, want)
		}
	}
}

// server is a Prometheus server that scrapes a lab.
type server struct{ client *http.Client }

// prometheus starts one on a.
func (l *lab) prometheus() server {
	l.t.Helper()
	dir := l.t.TempDir()
	alerts, err := filepath.Abs(deploy + "alerts.yml")
	if err != nil {
		l.t.Fatal(err)
	}
	const at = "127.0.0.1:9090"
	file := filepath.Join(dir, "prometheus.yml")
	if err := os.WriteFile(file, fmt.Appendf(nil, `global: {scrape_interval: 200ms, evaluation_interval: 200ms}
rule_files: [%q]
scrape_configs:
  - {job_name: goipip, static_configs: [{targets: [%q]}]}
`, alerts, served), 0o600); err != nil {
		l.t.Fatal(err)
	}
	log := &labtest.Output{}
	cmd := exec.Command("prometheus", "--config.file="+file, "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+at)
	cmd.Stderr = log
	if _, err := l.a.Start(cmd); err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() {
		if l.t.Failed() {
			l.t.Logf("prometheus: %s", log)
		}
	})
	p := server{&http.Client{Transport: l.client.Transport}}
	labtest.WaitFor(l.t, "Prometheus to be ready", func() bool {
		resp, err := p.client.Get("http://" + at + "/-/ready")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	return p
}

// result is an element of a vector.
type result struct{ Metric map[string]string }

// query returns the result of an expression, which must be a vector.
func (p server) query(t *testing.T, expr string) []result {
	t.Helper()
	var r struct{ Result []result }
	p.get(t, "/api/v1/query?query="+url.QueryEscape(expr), &r)
	return r.Result
}

// get asks for the data of an answer.
func (p server) get(t *testing.T, path string, data any) {
	t.Helper()
	resp, err := p.client.Get("http://127.0.0.1:9090" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	answer := struct {
		Status, Error string
		Data          any
	}{Data: data}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil || answer.Status != "success" {
		t.Fatalf("%s: %s, %s, %v", path, answer.Status, answer.Error, err)
	}
}
