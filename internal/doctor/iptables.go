package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"

	"goipip/internal/packet"
)

// errNoIPTables means that legacy iptables has rules here that cannot be read.
var errNoIPTables = errors.New("legacy iptables has rules here, and there is no program iptables-legacy to list them")

// readIPTables returns a ruleset for each table of legacy iptables that exists.
func readIPTables() (all []ruleset, err error) {
	names, err := os.ReadFile("/proc/thread-self/net/ip_tables_names")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // the module is not loaded
	}
	if err != nil {
		return nil, err
	}
	for _, table := range strings.Fields(string(names)) {
		out, err := exec.Command("iptables-legacy", "-t", table, "-S").Output()
		if errors.Is(err, exec.ErrNotFound) {
			return nil, errNoIPTables
		}
		if err != nil {
			return nil, fmt.Errorf("list the table %s of legacy iptables: %w", table, err)
		}
		all = append(all, parseIPTables(table, string(out)))
	}
	return all, nil
}

// parseIPTables reads what iptables -S prints.
func parseIPTables(table, listing string) ruleset {
	program := []string{"iptables-legacy"}
	if table != "filter" {
		program = append(program, "-t", table)
	}
	s := ruleset{}
	for line := range strings.Lines(listing) {
		line = strings.TrimSpace(line)
		words := splitWords(line)
		if len(words) < 2 {
			continue
		}
		name := words[1]
		c, ok := s[name]
		if !ok {
			c = &chain{name: fmt.Sprintf("chain %s of iptables, table %s", name, table)}
			s[name] = c
		}
		switch words[0] {
		case "-P":
			c.base = &base{hook: hook(strings.ToLower(name)), drops: slices.Contains(words, "DROP"), early: table == "raw"}
			c.base.insert = func(f *flow) string {
				return command(slices.Concat(program, []string{"-I", name}, iptablesMatch(f), []string{"-j", "ACCEPT"})...)
			}
		case "-A":
			r := parseRule(words[2:])
			r.name = "rule " + line
			if r.wrong94 {
				words[slices.Index(words, "-p")+1] = "4"
				r.replace94 = command(slices.Concat(program, []string{"-R", name, strconv.Itoa(len(c.rules) + 1)}, words[2:])...)
			}
			c.rules = append(c.rules, r)
		}
	}
	return s
}

// iptablesMatch is as nftMatch.
func iptablesMatch(f *flow) []string {
	switch {
	case f.in != nil && f.out != nil:
		return []string{"-i", f.in.name, "-o", f.out.name}
	case f.in != nil && f.source.IsValid():
		return []string{"-s", f.source.String(), "-p", "4"}
	case f.out != nil && f.dest.IsValid():
		return []string{"-d", f.dest.String(), "-p", "4"}
	}
	return []string{"-p", "4"}
}

// splitWords splits a line at spaces that are not within quotation marks.
func splitWords(line string) (words []string) {
	var word strings.Builder
	quoted, escaped := false, false
	for _, r := range line + " " {
		switch {
		case escaped:
			escaped = false
		case r == '\\':
			escaped = true
			continue
		case r == '"':
			quoted = !quoted
			continue
		case r == ' ' && !quoted:
			if word.Len() > 0 {
				words = append(words, word.String())
				word.Reset()
			}
			continue
		}
		word.WriteRune(r)
	}
	return words
}

// condition is one of a rule.
type condition func(*flow) truth

// parseRule reads the words of a rule behind its chain.
func parseRule(words []string) rule {
	var (
		all    []condition
		does   verdict
		is94   bool
		invert bool
	)
	for i := 0; i < len(words); i++ {
		word := words[i]
		if word == "!" {
			invert = true
			continue
		}
		value := ""
		if i+1 < len(words) {
			value = words[i+1]
		}
		takesValue := true
		var c condition
		switch word {
		case "-p":
			is94 = is94 || !invert && (value == "ipip" || value == "94")
			c = func(f *flow) truth { return f.has(value) }
		case "-s":
			c = func(f *flow) truth { return inPrefix(f.source, value) }
		case "-d":
			c = func(f *flow) truth { return inPrefix(f.dest, value) }
		case "-i":
			c = func(f *flow) truth { return by(f.in, value) }
		case "-o":
			c = func(f *flow) truth { return by(f.out, value) }
		case "--ctstate", "--state":
			c = func(f *flow) truth {
				return when(true, slices.Contains(strings.Split(value, ","), connStates[f.state()]))
			}
		case "-m", "--comment", "--reject-with", "--log-prefix", "--log-level", "--set-xmark", "--to-source", "--to-destination":
		case "-j":
			does = target(value)
		case "-g":
			does = verdict{kind: goTo, chain: value}
		default:
			takesValue = false
			c = func(*flow) truth { return maybe }
			if !strings.HasPrefix(word, "-") {
				c = nil // the value of such a word
			}
		}
		if takesValue {
			i++
		}
		if c != nil {
			all = append(all, inverted(c, invert))
		}
		invert = false
	}
	return rule{
		wrong94: is94 && does.kind != drop,
		eval: func(f *flow) (truth, verdict) {
			m := yes
			for _, c := range all {
				m = min(m, c(f))
			}
			return m, does
		},
	}
}

func inverted(c condition, invert bool) condition {
	if !invert {
		return c
	}
	return func(f *flow) truth { return yes - c(f) }
}

// target is what stands behind -j.
func target(name string) verdict {
	switch name {
	case "ACCEPT":
		return verdict{kind: accept}
	case "DROP", "REJECT":
		return verdict{kind: drop}
	case "NFQUEUE", "QUEUE":
		return verdict{kind: queue}
	case "RETURN":
		return verdict{kind: back}
	}
	// One of the others, such as LOG, is no chain.
	return verdict{kind: jump, chain: name}
}

func inPrefix(a netip.Addr, text string) truth {
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return maybe
	}
	return when(a.IsValid(), p.Contains(a))
}

// has is the truth of a condition about the protocol.
func (f *flow) has(protocol string) truth {
	if protocol == "all" {
		return yes
	}
	return when(f.protocol != 0, protocol == strconv.Itoa(int(f.protocol)) || f.protocol == packet.ProtoIPIP && protocol == "ipencap")
}

// by is the truth of a condition about the device by which packets come or leave; a + at its end
// stands for anything.
func by(l *link, device string) truth {
	if l == nil {
		return no
	}
	if prefix, ok := strings.CutSuffix(device, "+"); ok {
		return when(*l != link{}, strings.HasPrefix(l.name, prefix))
	}
	return when(*l != link{}, l.name == device)
}
