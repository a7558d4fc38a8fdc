package control

import (
	"encoding/json"
	"errors"
	"syscall"

	"goipip/internal/tunnel"
)

// Version is that of the protocol. A server answers requests of this version only.
const Version = 1

// maxRequest is the longest request line, in bytes: room for a tunnel with a thousand routes.
const maxRequest = 256 << 10

// Request is a line from a client.
type Request struct {
	Version int             `json:"version"`
	Method  string          `json:"method"`
	Params  json.RawMessage `json:"params,omitempty"`
}

// The methods, with their Params and the Result.
const (
	MethodAdd    = "add"    // TunnelParams without a Name; Added
	MethodChange = "change" // TunnelParams; nothing
	MethodDelete = "delete" // NameParams; nothing
	MethodList   = "list"   // ListParams; Listed
	MethodStatus = "status" // NameParams, with an empty name for all tunnels; Status
	MethodEvents = "events" // nothing; nothing, then lines with an Event
	MethodDrops  = "drops"  // NameParams; nothing, then lines with a Drop, and nothing again
)

// TunnelParams are those of add and change.
type TunnelParams struct {
	Name   string        `json:"name,omitempty"` // of the tunnel to change
	Tunnel tunnel.Config `json:"tunnel"`
}

// NameParams name a tunnel.
type NameParams struct {
	Name string `json:"name,omitempty"`
}

// ListParams say what else than the settings a list has.
type ListParams struct {
	Counters bool `json:"counters,omitempty"`
}

// Added is the result of add.
type Added struct {
	Name string `json:"name"` // of the link
}

// Listed is the result of list.
type Listed struct {
	Tunnels []Tunnel `json:"tunnels"` // by index
}

// Tunnel is a tunnel in a list: one whose link is in the daemon's network namespace.
type Tunnel struct {
	Config tunnel.Config `json:"config"` // in force; Config.Name and Config.Device are present names
	Index  int           `json:"index"`  // of the link
	// Counters are those of struct rtnl_link_stats64 as the kernel's tunnel would have
	// them, by name; nil unless they were asked for.
	Counters map[string]uint64 `json:"counters,omitempty"`
}

// Response is a line from a server.
type Response struct {
	Version int             `json:"version"`
	Result  json.RawMessage `json:"result,omitempty"`
	Error   *Error          `json:"error,omitempty"`
	Event   json.RawMessage `json:"event,omitempty"` // a log line: time, level, msg, tunnel, …
	Drop    *Drop           `json:"drop,omitempty"`
}

// Code says what kind of error an Error is.
type Code string

// The codes.
const (
	CodeBadRequest Code = "bad-request" // not JSON, too long, an unknown key, or a value of another type
	CodeVersion    Code = "version"     // another version of the protocol
	CodeMethod     Code = "method"      // an unknown method
	CodeDenied     Code = "denied"      // neither root nor the daemon's user
	CodeBusy       Code = "busy"        // too many connections
	CodeInvalid    Code = "invalid"     // settings that no tunnel can have
	CodeNotFound   Code = "not-found"   // no tunnel of that name
	CodeEnding     Code = "ending"      // the daemon is about to exit: start another one
	CodeFailed     Code = "failed"      // the kernel refused, or another tunnel is in the way
)

// Error is why a request was not carried out.
type Error struct {
	Code    Code          `json:"code"`
	Errno   syscall.Errno `json:"errno,omitempty"` // as in errno(3), if the kernel has one for it
	Message string        `json:"message"`
}

func (e *Error) Error() string { return e.Message }

// Is reports whether target is the errno or an *Error with the same code.
func (e *Error) Is(target error) bool {
	other, ok := target.(*Error)
	return ok && other.Code == e.Code || target == e.Errno
}

// As sets a target of type *syscall.Errno.
func (e *Error) As(target any) bool {
	errno, ok := target.(*syscall.Errno)
	if ok && e.Errno != 0 {
		*errno = e.Errno
		return true
	}
	return false
}

// Errors that a Handler returns.
var (
	ErrEnding   = &Error{Code: CodeEnding, Message: "the daemon is about to exit"}
	ErrNotFound = &Error{Code: CodeNotFound, Errno: syscall.ENODEV, Message: "no such tunnel"}
)

// toError returns err as the protocol has it.
func toError(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return &Error{e.Code, e.Errno, err.Error()}
	}
	e = &Error{Code: CodeFailed, Message: err.Error()}
	if errors.As(err, new(*tunnel.FieldError)) {
		e.Code, e.Errno = CodeInvalid, syscall.EINVAL
	}
	_ = errors.As(err, &e.Errno)
	return e
}
