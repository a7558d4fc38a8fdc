package doctor_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"goipip/internal/doctor"
)

// configuration is the file that the documentation names.
const configuration = `[tunnel.tun01]
local = "192.168.6.101"
remote = "192.168.8.101"
address = "172.66.1.101"
peer = "172.66.2.101"
`

// TestHealthy types the commands of docs/troubleshooting.md where nothing is wrong: before the tunnel
// runs, and while it does.
func TestHealthy(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	commands := regexp.MustCompile(`(?m)^    (goipip .*)`).FindAllStringSubmatch(string(text), -1)
	if len(commands) < 4 {
		t.Fatalf("the page has the commands %q only", commands)
	}
	s := newSite(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "goipip.toml"), []byte(configuration), 0o600); err != nil {
		t.Fatal(err)
	}
	in := "cd " + dir + "; PATH=" + filepath.Dir(s.goipip) + ":$PATH; "
	s.start(t, s.ns02)
	// A route by the tunnel that covers the remote end is none to it while a longer prefix has another.
	if r := s.doctor(t, append([]string{"-address", "192.168.9.7/16"}, wanted...)...); r.wrong() != nil {
		t.Errorf("with a network that contains the remote end's: %v", r.wrong())
	}
	for _, state := range []string{"before", "while"} {
		if state == "while" {
			s.start(t, s.ns01)
			s.does(t, s.ns01, "ping -q -c 1 172.66.2.101")
		}
		for _, c := range commands {
			out, err := s.ns01.Output("sh", "-ec", in+c[1])
			if lines := strings.Count(out, "\n"); err != nil || strings.Count("\n"+out, "\nok  ") != lines {
				t.Errorf("%s the tunnel runs: %s: %v\n%s", state, c[1], err, out)
			}
		}
	}
	named := s.doctor(t, "-local", "veth01", "-remote", outer02).of("name")
	if want := "veth01 stands for " + outer01 + " to " + outer02; named.Saw != want || named.Status != "ok" {
		t.Errorf("%+v, want %s", named, want)
	}
	r := s.doctor(t, "--probe", outer02)
	var made []string
	for _, c := range r.Checks {
		made = append(made, c.Check)
		if c.Status != "ok" || c.Why != "" || c.Cure != "" || c.Commands != nil {
			t.Errorf("%+v, want no finding", c)
		}
	}
	notApplied := []string{"name", "forwarding", "filter-forward"}
	want := slices.DeleteFunc(doctor.Checks(), func(c string) bool { return slices.Contains(notApplied, c) })
	if !slices.Equal(made, want) {
		t.Errorf("checks %v, want %v", made, want)
	}
}

// TestGoodRules has rules that let the tunnel's packets pass, and are to be understood as such.
func TestGoodRules(t *testing.T) {
	t.Parallel()
	for name, rules := range map[string]string{
		"nftables": `nft 'table inet f {
			set peers { type ipv4_addr; flags interval; elements = { 192.168.8.0/28, 192.168.8.100, 192.168.8.101, 192.168.8.102-192.168.8.110 }; };
			set old { type ipv4_addr; elements = { 192.168.8.102, 192.168.8.103 }; };
			map zones { type ifname : verdict; elements = { "lo" : accept, "veth01" : goto wan }; };
			chain no { type filter hook prerouting priority -150; ip saddr @old drop; ip ttl 1 meta l4proto != 4 drop; ct state invalid drop; };
			chain wan { ip protocol { tcp, udp } drop; ip daddr != 192.168.6.101 return; ip saddr . ip protocol { 192.168.8.101 . 4 } accept; };
			chain in { type filter hook input priority 0; policy drop; iifname vmap @zones; };
			chain out { type filter hook output priority 0; policy drop; meta mark 0x7 oif veth01 ip daddr @peers meta l4proto ipencap accept; };
			chain nat { type nat hook postrouting priority 100; oifname eth9 masquerade; };
			}
			table netdev g { chain in { type filter hook ingress device "lo" priority 0; drop; }; }'`,
		"iptables": `iptables-legacy -P INPUT DROP; iptables-legacy -P OUTPUT DROP; iptables-legacy -N IPIP
			iptables-legacy -A IPIP ! -s 192.168.8.101 -j RETURN; iptables-legacy -A IPIP -p 4 -m state --state NEW,ESTABLISHED -j ACCEPT
			iptables-legacy -A INPUT -p tcp -m tcp --dport 22 -j REJECT; iptables-legacy -A INPUT -i veth+ -m comment --comment "the tunnel's -j DROP" -j IPIP
			iptables-legacy -A OUTPUT ! -o veth01 -j DROP; iptables-legacy -A OUTPUT -d 192.168.8.96/27 -p 4 -j ACCEPT
			iptables-legacy -t raw -A PREROUTING -i eth9 -j DROP`,
		"iptables-nft": `iptables-nft -P INPUT DROP; iptables-nft -A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT
			iptables-nft -A INPUT -s 192.168.8.101/32 -p 4 -m comment --comment tunnel -j ACCEPT; iptables-nft -A INPUT -j REJECT`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			s.does(t, s.ns01, rules)
			r := s.doctor(t, append([]string{"-fwmark", "7"}, wanted...)...)
			if got := r.wrong(); !slices.Equal(got, []string{"filter-cost"}) || r.of("filter-input").Status != "ok" {
				t.Errorf("findings: %+v, %+v, %+v", got, r.of("filter-input"), r.of("filter-output"))
			}
			s.start(t, s.ns02) // and the kernel agrees
			if p := s.doctor(t, append([]string{"-fwmark", "7", "-address", "172.66.1.101", "-peer", "172.66.2.101", "--probe", outer02}, wanted...)...).of("probe"); p.Status != "ok" || !strings.Contains(p.Saw, "within the tunnel") {
				t.Errorf("a probe: %+v", p)
			}
		})
	}
}

// Replies that the kernel takes out of the tunnel by itself are seen too.
func TestProbe_FastPath(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.options = []string{"-fast-path", "on"}
	s.start(t, s.ns01, s.ns02)
	s.does(t, s.ns01, "ping -q -c 1 172.66.2.101")
	r := s.doctor(t, "--probe", outer02)
	if p, mtu := r.of("probe"), r.of("probe-mtu"); p.Saw != "172.66.2.101 answers within the tunnel" || mtu.Saw != "packets of 1500 bytes arrive, 1480 within the tunnel" {
		t.Errorf("%+v, %+v", p, mtu)
	}
}
