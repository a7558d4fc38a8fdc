package tunnel

import "fmt"

// field is the name of a setting, in the spelling that flags and keys share.
type field string

const (
	fieldName       field = "name"
	fieldLocal      field = "local"
	fieldRemote     field = "remote"
	fieldAddress    field = "address"
	fieldPeer       field = "peer"
	fieldAddresses  field = "addresses"
	fieldRoutes     field = "routes"
	fieldMTU        field = "mtu"
	fieldTTL        field = "ttl"
	fieldNoPMTUDisc field = "nopmtudisc"
	fieldDev        field = "dev"
	fieldQueues     field = "queues"
	fieldClampMSS   field = "clamp-mss"

	fieldResolveInterval  field = "resolve-interval"
	fieldKeepalive        field = "keepalive"
	fieldKeepaliveRetries field = "keepalive-retries"
)

// FieldError says which setting of a Config is wrong, and how to mend it. Where the
// user gave the setting, as a flag or as a key of a file, is added by the package
// that knows it.
type FieldError struct {
	Field string // the setting, as "mtu", or a part of one, as "addresses[1]" or "routes[0].to"

	format string
	args   []any // those of type field are settings
}

// at is element i of a list.
func (f field) at(i int) field { return field(fmt.Sprintf("%s[%d]", string(f), i)) }

func (f field) errorf(format string, args ...any) *FieldError {
	return &FieldError{Field: string(f), format: format, args: args}
}

// Error is the text with the settings' names as they are: "mtu 67: must be …".
func (e *FieldError) Error() string {
	return e.Text(func(name string) string { return name })
}

// Text is the text with the settings' names as spell returns them.
func (e *FieldError) Text(spell func(string) string) string {
	args := make([]any, len(e.args))
	for i, a := range e.args {
		if f, ok := a.(field); ok {
			a = spell(string(f))
		}
		args[i] = a
	}
	return fmt.Sprintf(e.format, args...)
}

// Fields are all settings that the text names.
func (e *FieldError) Fields() []string {
	var names []string
	for _, a := range e.args {
		if f, ok := a.(field); ok {
			names = append(names, string(f))
		}
	}
	return names
}
