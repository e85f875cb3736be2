package io.tinymlaas.interop;

import java.util.Map;

import org.eclipse.leshan.client.servers.LwM2mServer;
import org.eclipse.leshan.core.node.LwM2mResource;
import org.eclipse.leshan.core.request.argument.Arguments;
import org.eclipse.leshan.core.response.ExecuteResponse;
import org.eclipse.leshan.core.response.WriteResponse;

/** Object 5 of LwM2M 1.1: states 0 idle, 1 downloading, 2 downloaded, 3 updating; the update itself is a new version name. */
final class FirmwareInstance extends FixedInstance {
    private static final int PACKAGE = 0, URI = 1, UPDATE = 2, STATE = 3, RESULT = 5;
    private final Download download;
    private final FixedInstance device;
    private byte[] image = new byte[0];

    FirmwareInstance(Download download, FixedInstance device) {
        super(Map.of(STATE, 0L, RESULT, 0L, 6, "", 7, "", 8, Map.of(0, 0L), 9, 2L));
        this.download = download;
        this.device = device;
    }

    @Override
    public WriteResponse write(LwM2mServer server, boolean replace, int resource, LwM2mResource value) {
        if (resource == PACKAGE) {
            byte[] bytes = (byte[]) value.getValue();
            if (bytes.length <= 1) {
                return reset();
            }
            delivered(bytes, "push");
            return WriteResponse.success();
        }
        if (resource == URI) {
            String uri = (String) value.getValue();
            if (uri.isEmpty()) {
                return reset();
            }
            set(RESULT, 0L);
            set(STATE, 1L);
            download.fetch(uri, bytes -> delivered(bytes, "pull"), why -> {
                set(RESULT, why.equals("no answer") ? 4L : 7L);
                set(STATE, 0L);
            });
            return WriteResponse.success();
        }
        return super.write(server, replace, resource, value);
    }

    @Override
    public ExecuteResponse execute(LwM2mServer server, int resource, Arguments arguments) {
        if (resource != UPDATE || (long) values.get(STATE) != 2L) {
            return ExecuteResponse.methodNotAllowed();
        }
        set(STATE, 3L);
        String version = SoftwareInstance.sha256(image).substring(0, 12);
        Wire.tell("updated", "version", version);
        device.set(3, version);
        set(7, version);
        set(RESULT, 1L);
        set(STATE, 0L);
        return ExecuteResponse.success();
    }

    private WriteResponse reset() {
        set(RESULT, 0L);
        set(STATE, 0L);
        return WriteResponse.success();
    }

    private void delivered(byte[] bytes, String way) {
        Wire.tell("firmware", "way", way, "bytes", bytes.length, "sha256", SoftwareInstance.sha256(bytes));
        image = bytes;
        set(STATE, 2L);
    }
}
