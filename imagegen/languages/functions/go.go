// Serves requests to Handle over descriptor 3 (agent/PROTOCOL.md, "Functions"). It is a file of the function's own package: what
// it declares begins with mayfly, and its imports have names that no function gives to what it declares. Compiles with Go 1.19.

package main

import (
	crypto_ "crypto/rand"
	binary_ "encoding/binary"
	json_ "encoding/json"
	fmt_ "fmt"
	io_ "io"
	rand_ "math/rand"
	os_ "os"
	debug_ "runtime/debug"
	strings_ "strings"
	syscall_ "syscall"
	time_ "time"
)

const (
	mayflyRequest = 1
	mayflyResumed = 2

	mayflyLoaded    = 0
	mayflyAnswer    = 1
	mayflyException = 2

	mayflyMaxPayload = 6 << 20
	mayflyMaxTrace   = 64 << 10
	// The descriptor's number while a handler runs, which may close or open what it likes below.
	mayflyPrivate = 1000
)

// What a call has come to, if it has: a panic and runtime.Goexit leave done false.
type mayflyOutcome struct {
	done   bool
	answer []byte
	err    error
	panic  interface{}
	trace  string
}

func main() {
	number, _, failure := syscall_.Syscall(syscall_.SYS_FCNTL, 3, syscall_.F_DUPFD_CLOEXEC, mayflyPrivate)
	if failure != 0 {
		fmt_.Fprintln(os_.Stderr, "descriptor 3 is not open; the guest's agent starts this program")
		os_.Exit(1)
	}
	syscall_.Close(3)
	channel := os_.NewFile(number, "requests")
	if mayflyInit != nil {
		mayflyInit()
	}
	debug_.FreeOSMemory() // it would be part of the snapshot
	mayflySend(channel, mayflyLoaded, 0, 0, nil)
	for {
		kind, id, payload, err := mayflyReceive(channel)
		if err != nil {
			return
		}
		if kind == mayflyResumed {
			seed := make([]byte, 8)
			crypto_.Read(seed)
			rand_.Seed(int64(binary_.LittleEndian.Uint64(seed)))
			continue
		}
		begin := time_.Now()
		answerKind, answer := mayflyCall(payload)
		mayflySend(channel, answerKind, id, time_.Since(begin).Microseconds(), answer)
	}
}

func mayflyCall(payload []byte) (kind byte, answer []byte) {
	outcomes := make(chan mayflyOutcome)
	// In a goroutine of its own: runtime.Goexit ends the one that it is called in.
	go func() {
		outcome := mayflyOutcome{}
		defer func() {
			if !outcome.done {
				outcome.panic = recover()
				outcome.trace = string(debug_.Stack())
			}
			outcomes <- outcome
		}()
		outcome.answer, outcome.err = mayflyHandle(payload)
		outcome.done = true
	}()
	outcome := <-outcomes
	switch {
	case !outcome.done && outcome.panic == nil:
		return mayflyDescribe("runtime.Goexit", "the goroutine of the handler was ended", "")
	case !outcome.done:
		return mayflyDescribe(fmt_.Sprintf("%T", outcome.panic), fmt_.Sprint(outcome.panic), mayflyTrim(outcome.trace))
	case outcome.err != nil:
		return mayflyDescribe(fmt_.Sprintf("%T", outcome.err), fmt_.Sprint(outcome.err), "")
	case len(outcome.answer) > mayflyMaxPayload:
		text := fmt_.Sprintf("the answer has %d bytes; at most %d can be sent", len(outcome.answer), mayflyMaxPayload)
		return mayflyDescribe("answer too large", text, "")
	}
	return mayflyAnswer, outcome.answer
}

// An exception as JSON.
func mayflyDescribe(name, message, trace string) (byte, []byte) {
	if len(message) > mayflyMaxTrace {
		message = message[:mayflyMaxTrace]
	}
	if len(trace) > mayflyMaxTrace {
		trace = trace[:mayflyMaxTrace]
	}
	text, _ := json_.Marshal(map[string]string{"error": name, "message": message, "trace": trace})
	return mayflyException, text
}

// A stack from the function that called panic; what is above it is ours and the runtime's.
func mayflyTrim(trace string) string {
	_, after, found := strings_.Cut(trace, "\npanic(")
	if !found {
		return trace
	}
	_, after, _ = strings_.Cut(after, "\n") // the rest of the line, and the place in the runtime
	_, after, _ = strings_.Cut(after, "\n")
	return after
}

func mayflyReceive(channel io_.Reader) (kind byte, id uint32, payload []byte, err error) {
	header := make([]byte, 7)
	if _, err = io_.ReadFull(channel, header); err != nil {
		return
	}
	kind, id = header[0], binary_.LittleEndian.Uint32(header[1:])
	// The content type, which a handler is not told, and the size.
	rest := make([]byte, int(binary_.LittleEndian.Uint16(header[5:]))+4)
	if _, err = io_.ReadFull(channel, rest); err != nil {
		return
	}
	payload = make([]byte, binary_.LittleEndian.Uint32(rest[len(rest)-4:]))
	_, err = io_.ReadFull(channel, payload)
	return
}

func mayflySend(channel io_.Writer, kind byte, id uint32, took int64, payload []byte) {
	contentType := ""
	if kind == mayflyException {
		contentType = "application/json"
	}
	message := make([]byte, 0, 64+len(payload))
	message = append(message, kind)
	message = binary_.LittleEndian.AppendUint32(message, id)
	message = binary_.LittleEndian.AppendUint64(message, uint64(took))
	message = binary_.LittleEndian.AppendUint16(message, uint16(len(contentType)))
	message = append(message, contentType...)
	message = binary_.LittleEndian.AppendUint32(message, uint32(len(payload)))
	message = append(message, payload...)
	if _, err := channel.Write(message); err != nil {
		os_.Exit(1) // the agent has closed its end
	}
}
