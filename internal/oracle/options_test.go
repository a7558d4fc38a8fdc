package oracle_test

// Options of an IPv4 header, as RFC 791 §3.1 has them.
const (
	optEnd           = 0
	optNop           = 1
	optSecurity      = 130
	optLooseRoute    = 131
	optTimestamp     = 68
	optCommercial    = 134
	optRecordRoute   = 7
	optStream        = 136
	optStrictRoute   = 137
	optRouterAlert   = 148
	optUnknown       = 30
	optUnknownCopied = 158 // experiment, RFC 4727
)

// options are contents of the option area, padded to words.
var options = []struct {
	name  string
	bytes []byte
}{
	{"no operation", []byte{optNop, optNop, optNop, optNop}},
	{"end", []byte{optEnd, 0, 0, 0}},
	{"end, then garbage", []byte{optEnd, optRecordRoute, 3, 4}},
	{"no operation ten times", repeat(optNop, 40)},
	{"record route, room for one", []byte{optRecordRoute, 7, 4, 0, 0, 0, 0, optEnd}},
	{"record route, room for nine", append([]byte{optRecordRoute, 39, 4}, repeat(0, 37)...)},
	{"record route, full", []byte{optRecordRoute, 7, 8, 10, 9, 9, 9, optEnd}},
	{"record route, no room", []byte{optRecordRoute, 3, 4, optEnd}},
	{"record route, bad pointer", []byte{optRecordRoute, 7, 3, 0, 0, 0, 0, optEnd}},
	{"record route, pointer between words", []byte{optRecordRoute, 7, 5, 0, 0, 0, 0, optEnd}},
	{"record route, too long", []byte{optRecordRoute, 40, 4, optEnd}},
	{"record route, length 1", []byte{optRecordRoute, 1, 4, optEnd}},
	{"record route twice", []byte{optRecordRoute, 7, 4, 0, 0, 0, 0, optRecordRoute, 7, 4, 0, 0, 0, 0, optEnd, 0}},
	{"timestamp, room for one", []byte{optTimestamp, 8, 9, 0, 0, 0, 0, 0}},
	{"timestamp, full", []byte{optTimestamp, 8, 9, 0x10, 0, 0, 0, 0}},
	{"timestamp, overflow full", []byte{optTimestamp, 8, 9, 0xf0, 0, 0, 0, 0}},
	{"timestamp with addresses, full", []byte{optTimestamp, 12, 13, 0x11, 10, 9, 9, 9, 0, 0, 0, 1}},
	{"timestamp prespecified, not here", []byte{optTimestamp, 12, 5, 3, 10, 9, 9, 9, 0, 0, 0, 0}},
	{"timestamp, bad flag", []byte{optTimestamp, 8, 5, 2, 0, 0, 0, 0}},
	{"timestamp, short", []byte{optTimestamp, 3, 5, optEnd}},
	{"loose route, done", []byte{optLooseRoute, 7, 8, 10, 9, 9, 9, optEnd}},
	{"loose route, one to go", []byte{optLooseRoute, 7, 4, 10, 2, 9, 9, optEnd}},
	{"strict route, done", []byte{optStrictRoute, 7, 8, 10, 9, 9, 9, optEnd}},
	{"strict route, one to go", []byte{optStrictRoute, 7, 4, 10, 2, 9, 9, optEnd}},
	{"router alert", []byte{optRouterAlert, 4, 0, 0}},
	{"router alert of another value", []byte{optRouterAlert, 4, 1, 2}},
	{"router alert, short", []byte{optRouterAlert, 3, 0, optEnd}},
	{"security", []byte{optSecurity, 11, 0, 0, 0, 0, 0, 0, 0, 0, 0, optEnd}},
	{"commercial security", []byte{optCommercial, 10, 0, 0, 0, 1, 1, 4, 0, 1, optEnd, optEnd}},
	{"stream", []byte{optStream, 4, 1, 2}},
	{"unknown", []byte{optUnknown, 4, 1, 2}},
	{"unknown, copied", []byte{optUnknownCopied, 4, 1, 2}},
	{"unknown, length 0", []byte{optUnknown, 0, 1, 2}},
	{"unknown, too long", []byte{optUnknown, 5, 1, 2}},
	{"kind alone at the end", []byte{optNop, optNop, optNop, optUnknown}},
}

func repeat(b byte, n int) []byte {
	list := make([]byte, n)
	for i := range list {
		list[i] = b
	}
	return list
}
