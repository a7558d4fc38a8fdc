package tunnel

import "strings"

// IsDeviceName reports whether s is a device whose address may be meant: a name that a link
// can have, and that begins with a letter, as no IPv4 address does.
func IsDeviceName(s string) bool {
	return s != "" && (s[0]|0x20 >= 'a' && s[0]|0x20 <= 'z') && validateName(fieldLocal, s) == nil
}

// NamesText is the names among the tunnel's ends.
func (c Config) NamesText() string {
	if c.LocalDevice != "" && c.RemoteName != "" {
		return c.LocalDevice + " and " + c.RemoteName
	}
	return c.LocalDevice + c.RemoteName
}

// IsHostName reports whether s is a name that the DNS may have an address for (RFC 1123 §2.1):
// labels of letters, digits and hyphens, and underscores, which some hosts have. A last label
// of digits only makes it a mistyped address.
func IsHostName(s string) bool {
	s = strings.TrimSuffix(s, ".")
	if s == "" || len(s) > 253 {
		return false
	}
	last := ""
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' || strings.ContainsFunc(label, notInHostName) {
			return false
		}
		last = label
	}
	return strings.Trim(last, "0123456789") != ""
}

func notInHostName(r rune) bool {
	return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_')
}
