package front

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"tinymlaas/dtls-front/internal/bridge"
	"tinymlaas/dtls-front/internal/peer"
)

const patience = 30 * time.Second

// keys is a bridge that knows some identities, and remembers who opened what.
type keys struct {
	mutex  sync.Mutex
	known  map[string][]byte
	refuse bool
	open   map[string]bridge.Session
}

func (k *keys) ResolveKey(_ context.Context, identity []byte) ([]byte, error) {
	k.mutex.Lock()
	defer k.mutex.Unlock()
	secret, ok := k.known[string(identity)]
	if !ok {
		return nil, bridge.ErrUnknownIdentity
	}
	return secret, nil
}

func (k *keys) Open(_ context.Context, session bridge.Session) error {
	k.mutex.Lock()
	defer k.mutex.Unlock()
	if k.refuse {
		return bridge.ErrRefused
	}
	k.open[session.ID] = session
	return nil
}

func (k *keys) Closed(id string) {
	k.mutex.Lock()
	defer k.mutex.Unlock()
	delete(k.open, id)
}

func (k *keys) sessions() []bridge.Session {
	k.mutex.Lock()
	defer k.mutex.Unlock()
	found := make([]bridge.Session, 0, len(k.open))
	for _, session := range k.open {
		found = append(found, session)
	}
	return found
}

// rig is a front before an echoing "bridge" that prefixes what it got with the sender's address.
type rig struct {
	t     *testing.T
	keys  *keys
	front *Front
	echo  *net.UDPConn
}

func newRig(t *testing.T, change func(*Limits)) *rig {
	t.Helper()
	echo, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		buffer := make([]byte, maxDatagram)
		for {
			count, from, err := echo.ReadFromUDP(buffer)
			if err != nil {
				return
			}
			_, _ = echo.WriteToUDP(fmt.Appendf(nil, "%s %s", from, buffer[:count]), from)
		}
	}()
	known := &keys{known: map[string][]byte{"node-1": []byte("0123456789abcdef"), "node-2": []byte("fedcba9876543210")},
		open: map[string]bridge.Session{}}
	limits := DefaultLimits()
	if change != nil {
		change(&limits)
	}
	loopback := &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}
	front, err := Listen(loopback, echo.LocalAddr().(*net.UDPAddr), known, limits)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- front.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
		_ = echo.Close()
	})
	return &rig{t, known, front, echo}
}

type device struct {
	t      *testing.T
	peer   *peer.Peer
	socket *net.UDPConn
	failed chan error
}

func (r *rig) device(identity, secret string) *device {
	r.t.Helper()
	relay, err := peer.New(&net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}, r.front.Address().(*net.UDPAddr), []byte(identity), []byte(secret))
	if err != nil {
		r.t.Fatal(err)
	}
	socket, err := net.DialUDP("udp", nil, relay.Address().(*net.UDPAddr))
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	failed := make(chan error, 1)
	go func() { failed <- relay.Serve(ctx) }()
	made := &device{r.t, relay, socket, failed}
	r.t.Cleanup(func() { cancel(); _ = socket.Close() })
	return made
}

func (d *device) send(text string) {
	d.t.Helper()
	if _, err := d.socket.Write([]byte(text)); err != nil {
		d.t.Fatal(err)
	}
}

func (d *device) receive() string {
	d.t.Helper()
	buffer := make([]byte, maxDatagram)
	if err := d.socket.SetReadDeadline(time.Now().Add(patience)); err != nil {
		d.t.Fatal(err)
	}
	count, err := d.socket.Read(buffer)
	if err != nil {
		d.t.Fatal("no answer:", err)
	}
	return string(buffer[:count])
}

func (d *device) fails() error {
	d.t.Helper()
	d.send("hello")
	select {
	case err := <-d.failed:
		if err == nil {
			d.t.Fatal("the session opened")
		}
		return err
	case <-time.After(patience):
		d.t.Fatal("the handshake neither failed nor ended")
		return nil
	}
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !holds() {
		if time.Now().After(deadline) {
			t.Fatal("never:", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestDatagramsReachTheBridgeFromAnAddressThatIsTheSessionsOwn(t *testing.T) {
	rig := newRig(t, nil)
	one, two := rig.device("node-1", "0123456789abcdef"), rig.device("node-2", "fedcba9876543210")
	one.send("a")
	two.send("b")
	first, second := one.receive(), two.receive()
	addresses := map[string]string{}
	for _, session := range rig.keys.sessions() {
		addresses[string(session.Identity)] = session.RelayAddress
	}
	if want := addresses["node-1"] + " a"; first != want {
		t.Errorf("got %q, want %q", first, want)
	}
	if want := addresses["node-2"] + " b"; second != want {
		t.Errorf("got %q, want %q", second, want)
	}
}

func TestAWrongKeyAndAnUnknownIdentityOpenNoSession(t *testing.T) {
	rig := newRig(t, nil)
	_ = rig.device("node-1", "not-the-key-at-all").fails()
	_ = rig.device("nobody", "0123456789abcdef").fails()
	if open := rig.keys.sessions(); len(open) != 0 {
		t.Error("sessions were told of:", open)
	}
}

// DO-SEC-008.
func TestASessionThatTheBridgeRefusesIsEnded(t *testing.T) {
	rig := newRig(t, nil)
	rig.keys.refuse = true
	refused := rig.device("node-1", "0123456789abcdef")
	refused.send("a")
	eventually(t, "the device is told", func() bool {
		select {
		case <-refused.failed:
			return true
		default:
			return false
		}
	})
	if count := rig.front.Counters.SessionsRefused.Load(); count != 1 {
		t.Error("refused:", count)
	}
}

// DO-SEC-010.
func TestASessionGoesOnFromAnotherAddressWithoutAHandshake(t *testing.T) {
	rig := newRig(t, nil)
	device := rig.device("node-1", "0123456789abcdef")
	device.send("before")
	before := device.receive()
	if err := device.peer.Rebind(); err != nil {
		t.Fatal(err)
	}
	device.send("after")
	after := device.receive()
	if bytes.Fields([]byte(before))[0][0] == 0 || before[:len(before)-6] != after[:len(after)-5] {
		t.Errorf("the bridge saw %q, then %q", before, after)
	}
	if count := rig.front.Counters.Handshakes.Load(); count != 1 {
		t.Error("handshakes:", count)
	}
}

func TestAnIdentitysOldestSessionEndsWhenItOpensTooMany(t *testing.T) {
	rig := newRig(t, func(limits *Limits) { limits.SessionsPerIdentity = 1 })
	first := rig.device("node-1", "0123456789abcdef")
	first.send("a")
	first.receive()
	second := rig.device("node-1", "0123456789abcdef")
	second.send("b")
	second.receive()
	eventually(t, "one session is left", func() bool { return len(rig.keys.sessions()) == 1 })
	second.send("c")
	second.receive()
}

func TestHandshakesOfOneSourceAreLimited(t *testing.T) {
	rig := newRig(t, func(limits *Limits) { limits.HandshakesPerSecond, limits.HandshakeBurst = 0, 1 })
	first := rig.device("node-1", "0123456789abcdef")
	first.send("a")
	first.receive()
	rig.device("node-2", "fedcba9876543210").send("b")
	eventually(t, "the second is turned away", func() bool { return rig.front.Counters.HandshakesLimited.Load() > 0 })
}

func TestSessionsBeyondTheLimitAreRefused(t *testing.T) {
	rig := newRig(t, func(limits *Limits) { limits.Sessions = 1 })
	first := rig.device("node-1", "0123456789abcdef")
	first.send("a")
	first.receive()
	rig.device("node-2", "fedcba9876543210").send("b")
	eventually(t, "the second is refused", func() bool { return rig.front.Counters.SessionsRefused.Load() == 1 })
	first.send("c")
	first.receive()
}

func TestASessionWithoutDatagramsEnds(t *testing.T) {
	rig := newRig(t, func(limits *Limits) { limits.Idle = 50 * time.Millisecond })
	device := rig.device("node-1", "0123456789abcdef")
	device.send("a")
	eventually(t, "no session is left", func() bool {
		return rig.front.Counters.Handshakes.Load() == 1 && len(rig.keys.sessions()) == 0
	})
}

// recorder sits between a device and the front, and keeps what passes.
type recorder struct {
	socket *net.UDPConn
	mutex  sync.Mutex
	sent   [][]byte
	got    [][]byte
}

func (r *rig) recorder() *recorder {
	r.t.Helper()
	loopback := &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}
	inside, err := net.ListenUDP("udp", loopback)
	if err != nil {
		r.t.Fatal(err)
	}
	made := &recorder{socket: inside}
	outside, err := net.DialUDP("udp", nil, r.front.Address().(*net.UDPAddr))
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = inside.Close(); _ = outside.Close() })
	var client *net.UDPAddr
	go func() {
		buffer := make([]byte, maxDatagram)
		for {
			count, from, err := inside.ReadFromUDP(buffer)
			if err != nil {
				return
			}
			made.mutex.Lock()
			client = from
			made.sent = append(made.sent, bytes.Clone(buffer[:count]))
			made.mutex.Unlock()
			_, _ = outside.Write(buffer[:count])
		}
	}()
	go func() {
		buffer := make([]byte, maxDatagram)
		for {
			count, err := outside.Read(buffer)
			if err != nil {
				return
			}
			made.mutex.Lock()
			made.got = append(made.got, bytes.Clone(buffer[:count]))
			to := client
			made.mutex.Unlock()
			_, _ = inside.WriteToUDP(buffer[:count], to)
		}
	}()
	return made
}

func (r *recorder) last() []byte {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	return r.sent[len(r.sent)-1]
}

// DO-SEC-010.
func TestReplayedAndForgedRecordsDoNothing(t *testing.T) {
	rig := newRig(t, nil)
	recorder := rig.recorder()
	relay, err := peer.New(&net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}, recorder.socket.LocalAddr().(*net.UDPAddr),
		[]byte("node-1"), []byte("0123456789abcdef"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() { _ = relay.Serve(ctx) }()
	socket, err := net.DialUDP("udp", nil, relay.Address().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	device := &device{t, relay, socket, nil}
	device.send("once")
	device.receive()
	record := recorder.last()
	thief, err := net.DialUDP("udp", nil, rig.front.Address().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	defer thief.Close()
	forged := bytes.Clone(record)
	forged[len(forged)-1] ^= 1
	for _, datagram := range [][]byte{record, forged} {
		if _, err := thief.Write(datagram); err != nil {
			t.Fatal(err)
		}
	}
	device.send("twice")
	if answer := device.receive(); !bytes.HasSuffix([]byte(answer), []byte("twice")) {
		t.Errorf("got %q", answer)
	}
	if count := rig.front.Counters.DatagramsIn.Load(); count != 2 {
		t.Error("datagrams that reached the bridge:", count)
	}
	if err := thief.SetReadDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if count, err := thief.Read(make([]byte, maxDatagram)); err == nil {
		t.Error("the thief was answered with", count, "bytes")
	}
}

// DO-SEC-009.
func TestASourceThatHasNotProvenItsAddressGetsNoMoreBytesThanItSent(t *testing.T) {
	rig := newRig(t, nil)
	recorder := rig.recorder()
	relay, err := peer.New(&net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}, recorder.socket.LocalAddr().(*net.UDPAddr),
		[]byte("node-1"), []byte("0123456789abcdef"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() { _ = relay.Serve(ctx) }()
	socket, err := net.DialUDP("udp", nil, relay.Address().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	if _, err := socket.Write([]byte("a")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a handshake", func() bool { return rig.front.Counters.Handshakes.Load() == 1 })
	recorder.mutex.Lock()
	hello := recorder.sent[0]
	recorder.mutex.Unlock()
	spoofed, err := net.DialUDP("udp", nil, rig.front.Address().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	defer spoofed.Close()
	if _, err := spoofed.Write(hello); err != nil {
		t.Fatal(err)
	}
	// Longer than the first retransmission of a handshake (1 s).
	if err := spoofed.SetReadDeadline(time.Now().Add(2500 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	total, buffer := 0, make([]byte, maxDatagram)
	for {
		count, err := spoofed.Read(buffer)
		if err != nil {
			break
		}
		total += count
	}
	if total == 0 || total > len(hello) {
		t.Errorf("%d bytes for %d", total, len(hello))
	}
}
